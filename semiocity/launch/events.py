"""TensorBoard's event files, as far as scalars need them, without TensorBoard or torch. Standard library only.

A file is a sequence of records: length (uint64), crc of it, payload, crc of that, little-endian; the crc is CRC-32C,
rotated and offset as in TensorFlow's `lib/io/record_writer`. A payload is an `Event` message (`event.proto`):
wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5; in that value = 1, and in that tag = 1
(string) and simple_value = 2 (float).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8


def append(path: Path, wall_time: float, step: int, scalars: Mapping[str, float]) -> None:
    """Add scalars of one moment to an event file; a new file gets its first record too.

    Whole records are written with one call, so that a reader sees none or all of it.
    """
    event = _double(1, wall_time) + _integer(2, step)
    event += _bytes(
        5, b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in scalars.items())
    )
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        first = record(_double(1, wall_time) + _bytes(3, b"brain.Event:2")) if new else b""
        file.write(first + record(event))


def record(payload: bytes) -> bytes:
    """A payload in its frame."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", _masked(length)) + payload + struct.pack("<I", _masked(payload))


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), RFC 3720 appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
