"""crc32 of payloads. Only who computes it differs: ISA-L's takes a twentieth of the time of zlib's, where it is there."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
