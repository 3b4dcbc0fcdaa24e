"""Thrift's compact protocol, as far as parquet's headers and footers need it.

Source: the specification of the compact protocol in Apache Thrift (thrift-compact-protocol.md).
"""

from __future__ import annotations

from typing import Any


def struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The struct that begins at `at`: field → value (a struct is a dict, a string bytes), and where it ends.

    Raises IndexError when it goes on after the data's end, ValueError and RecursionError for what is damaged.
    """
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return found, at
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            raw, at = varint(data, at)
            field = _zigzag(raw)
        if kind in (1, 2):
            found[field] = kind == 1
        else:
            found[field], at = _item(data, at, kind)


def _item(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2 | 3:  # a bool in a list, a byte
            return data[at], at + 1
        case 4 | 5 | 6:
            raw, at = varint(data, at)
            return _zigzag(raw), at
        case 7:
            data[at + 7]  # a list may claim any number of them
            return None, at + 8
        case 8:
            length, at = varint(data, at)
            data[at + length]  # a struct goes on after it
            return data[at : at + length], at + length
        case 9 | 10:
            head = data[at]
            many, at = (head >> 4, at + 1) if head >> 4 < 15 else varint(data, at + 1)
            items = []
            for _ in range(many):
                item, at = _item(data, at, head & 15)
                items.append(item)
            return items, at
        case 12:
            return struct(data, at)
        case _:
            raise ValueError(f"damaged: no type {kind}")


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)
