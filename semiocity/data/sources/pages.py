"""One value out of a parquet file: its page is read and unpacked, not the whole row group.

Packing asks for rows in the order of their keys, which is as good as random; a row group of photographs is a hundred
megabytes, a page about one. Only columns of bytes that are not repeated are read so, in the encodings that writers use
for them; for others `read_value` raises Unsupported, and the caller reads the row group.

Source: the Parquet format specification 2.11 (parquet.thrift, Encodings.md), and Thrift's compact protocol.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

DICTIONARY_PAGE, DATA_PAGE, DATA_PAGE_V2 = 2, 0, 3
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd"}
HEADER_BYTES = 1 << 12
LARGEST_HEADER = 1 << 24
"""Bytes; a header holds the least and the greatest value of its page, which may be pictures."""


class Unsupported(Exception):
    """A column, codec or encoding that is not read page by page."""


@dataclass(frozen=True)
class Page:
    """A page of a column chunk."""

    kind: int
    rows: int
    """Values, null ones among them; of a dictionary page its entries."""
    encoding: int
    offset: int
    """Of its body in the file."""
    packed: int
    """Bytes of its body in the file."""
    unpacked: int
    levels: int
    """DATA_PAGE_V2: bytes of levels before the values, which are never packed."""
    is_packed: bool


@dataclass(frozen=True)
class Column:
    """A column chunk: one column of one row group."""

    codec: str | None
    deepest: int
    """Definition level of a value that is there."""
    dictionary: Page | None
    pages: list[Page]

    def bytes_read(self, rows: list[int]) -> int:
        """Bytes unpacked for these rows (ascending), one after the other."""
        total, first, left = 0, 0, iter(rows)
        row = next(left, None)
        for page in self.pages:
            while row is not None and row < first + page.rows:
                dictionary = self.dictionary if page.encoding != PLAIN else None
                total += page.unpacked + (dictionary.unpacked if dictionary else 0)
                row = next(left, None)
            first += page.rows
        return total


def read_column(descriptor: int, chunk: Any, schema: Any) -> Column:
    """The pages of a column chunk, from their headers alone. `chunk` and `schema` are pyarrow's.

    Raises Unsupported, and ValueError for what is damaged.
    """
    if chunk.physical_type != "BYTE_ARRAY" or schema.max_repetition_level or chunk.compression not in CODECS:
        raise Unsupported(chunk.path_in_schema)
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    dictionary: Page | None = None
    pages: list[Page] = []
    while at < end and sum(page.rows for page in pages) < chunk.num_values:
        page = _page(descriptor, at, end, chunk.total_uncompressed_size)
        if page.kind == DICTIONARY_PAGE:
            dictionary = page
        elif page.kind in (DATA_PAGE, DATA_PAGE_V2):
            if page.encoding not in (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY):
                raise Unsupported(f"encoding {page.encoding}")
            pages.append(page)
        at = page.offset + page.packed
    if sum(page.rows for page in pages) != chunk.num_values:
        raise ValueError(f"column {chunk.path_in_schema}: pages are missing")
    return Column(CODECS[chunk.compression], schema.max_definition_level, dictionary, pages)


def read_value(descriptor: int, column: Column, row: int) -> bytes | None:
    """The value of a row of the row group; None for null. Raises ValueError for what is damaged."""
    for page in column.pages:
        if row < page.rows:
            return _value(descriptor, column, page, row)
        row -= page.rows
    raise ValueError("no such row")


def _value(descriptor: int, column: Column, page: Page, row: int) -> bytes | None:
    body = _body(descriptor, column.codec, page)
    if page.kind == DATA_PAGE_V2:
        levels, values = body[: page.levels], body[page.levels :]
    elif column.deepest:
        length = int.from_bytes(body[:4], "little")
        levels, values = body[4 : 4 + length], body[4 + length :]
    else:
        levels, values = b"", body
    if column.deepest:
        found = _hybrid(levels, column.deepest.bit_length(), row + 1)
        if found[row] != column.deepest:
            return None
        row = found[:row].count(column.deepest)
    if page.encoding == PLAIN:
        return _plain(values, row)
    if column.dictionary is None:
        raise ValueError("the dictionary is missing")
    index = _hybrid(values[1:], values[0], row + 1)[row]
    return _plain(_body(descriptor, column.codec, column.dictionary), index)


def _body(descriptor: int, codec: str | None, page: Page) -> bytes:
    data = os.pread(descriptor, page.packed, page.offset)
    if len(data) != page.packed:
        raise ValueError("a page is cut")
    if codec is None or not page.is_packed:
        return data
    unpacked = pa.decompress(data[page.levels :], page.unpacked - page.levels, codec, asbytes=True)
    return data[: page.levels] + unpacked


def _plain(data: bytes, index: int) -> bytes:
    """Value `index` of values that are each four bytes of length, then the bytes."""
    at = 0
    for _ in range(index):
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        if at > len(data):  # a damaged index may be as large as numbers are
            raise ValueError("a value is cut")
    length = int.from_bytes(data[at : at + 4], "little")
    if at + 4 + length > len(data):
        raise ValueError("a value is cut")
    return data[at + 4 : at + 4 + length]


def _hybrid(data: bytes, bits: int, count: int) -> list[int]:
    """The first `count` numbers of a run of them, in the mix of run lengths and packed bits."""
    if bits > 32:
        raise ValueError("levels or indices are damaged")
    found: list[int] = []
    at, wide = 0, (bits + 7) // 8
    while len(found) < count:
        if at >= len(data) and bits:
            raise ValueError("levels or indices are cut")
        head, at = _varint(data, at)
        if head & 1:
            size = (head >> 1) * bits
            packed = int.from_bytes(data[at : at + size], "little")
            many = min((head >> 1) * 8, count - len(found))
            found += [packed >> (i * bits) & ((1 << bits) - 1) for i in range(many)]
            at += size
        else:
            value = int.from_bytes(data[at : at + wide], "little")
            found += [value] * min(head >> 1, count - len(found))
            at += wide
    return found


# ---------------------------------------------------------------- page headers


def _page(descriptor: int, at: int, end: int, largest: int) -> Page:
    size = HEADER_BYTES
    while True:
        data = os.pread(descriptor, min(size, end - at), at)
        try:
            header, length = _struct(data, 0)
            break
        except RecursionError:
            raise ValueError("the header of a page is damaged") from None
        except IndexError:
            if len(data) < size or size >= LARGEST_HEADER:
                raise ValueError("the header of a page is cut") from None
            size *= 8
    kind = _number(header, 1)
    v2 = kind == DATA_PAGE_V2
    inner = header.get({DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(kind, 0), {})
    if not isinstance(inner, dict):
        raise ValueError("the header of a page is damaged")
    page = Page(
        kind=kind,
        rows=_number(inner, 1, 0),
        encoding=_number(inner, 4 if v2 else 2, PLAIN),
        offset=at + length,
        packed=_number(header, 3),
        unpacked=_number(header, 2),
        levels=_number(inner, 5, 0) + _number(inner, 6, 0) if v2 else 0,
        is_packed=inner.get(7) is not False,
    )
    fits = 0 <= page.packed <= end - page.offset and 0 <= page.levels <= page.unpacked <= largest
    if not fits or page.rows < 0:
        raise ValueError("the header of a page is damaged")
    return page


def _number(header: dict[int, Any], field: int, absent: int = -1) -> int:
    value = header.get(field, absent)
    if not isinstance(value, int):
        raise ValueError("the header of a page is damaged")
    return value


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol: field → value, and where it ends. IndexError when it goes on."""
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
            raw, at = _varint(data, at)
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
            raw, at = _varint(data, at)
            return _zigzag(raw), at
        case 7:
            data[at + 7]  # a list may claim any number of them
            return None, at + 8
        case 8:
            length, at = _varint(data, at)
            data[at + length]  # a struct goes on after it
            return None, at + length
        case 9 | 10:
            head = data[at]
            many, at = (head >> 4, at + 1) if head >> 4 < 15 else _varint(data, at + 1)
            for _ in range(many):
                _, at = _item(data, at, head & 15)
            return None, at
        case 12:
            return _struct(data, at)
        case _:
            raise ValueError(f"the header of a page is damaged: type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
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
