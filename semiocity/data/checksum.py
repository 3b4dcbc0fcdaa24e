"""crc32 of payloads. ISA-L, where it is installed, takes a twentieth of zlib's time for the same number."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
