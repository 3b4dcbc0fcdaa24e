"""One value out of a parquet file: its page is read and unpacked, not the whole row group.

Packing asks for rows in the order of their keys, which is as good as random; a row group of photographs is a hundred
megabytes, a page about one. Only columns of bytes that are not repeated are read so, in the encodings that writers use
for them; for others `read_value` raises Unsupported, and the caller reads the row group.

Pages and chunks are read from their own headers and the footer: pyarrow's metadata of a chunk ends the whole process
where the footer is damaged (a codec that does not exist), with no exception that could be caught.

Source: the Parquet format specification 2.11 (parquet.thrift, Encodings.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from semiocity.data.sources import thrift

DICTIONARY_PAGE, DATA_PAGE, DATA_PAGE_V2 = 2, 0, 3
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
BYTE_ARRAY = 6
CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}
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


@dataclass(frozen=True)
class Chunk:
    """What the footer says of a column chunk."""

    path: str
    """Names from the root to the leaf, joined by dots."""
    kind: int
    codec: int
    values: int
    unpacked: int
    packed: int
    offset: int
    """Of its first page in the file."""


def row_groups(descriptor: int) -> list[list[Chunk]]:
    """Row group → leaf → its chunk, from the footer. Raises ValueError for what is damaged, Unsupported for a file
    that is encrypted."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 8, max(0, size - 8))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1":
        raise Unsupported("no plain footer")
    if length > size - 8:
        raise ValueError("the footer is cut")
    try:
        footer, _ = thrift.struct(os.pread(descriptor, length, size - 8 - length), 0)
        return [[_chunk(column[3]) for column in group[1]] for group in footer[4]]
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("the footer is damaged") from None


def _chunk(meta: dict[int, Any]) -> Chunk:
    first = meta[9]
    if 0 < meta.get(11, 0) < first:
        first = meta[11]  # the dictionary lies before the data
    numbers = [meta[1], meta[4], meta[5], meta[6], meta[7], first]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("the footer is damaged")
    return Chunk(".".join(name.decode() for name in meta[3]), *numbers)


def read_column(descriptor: int, chunk: Chunk, repeated: int, deepest: int) -> Column:
    """The pages of a column chunk, from their headers alone. `repeated` and `deepest`: the leaf's highest levels of
    repetition and definition.

    Raises Unsupported, and ValueError for what is damaged.
    """
    if chunk.kind != BYTE_ARRAY or repeated or chunk.codec not in CODECS:
        raise Unsupported(chunk.path)
    at, end = chunk.offset, chunk.offset + chunk.packed
    dictionary: Page | None = None
    pages: list[Page] = []
    rows = 0
    while at < end and rows < chunk.values:
        page = _page(descriptor, at, end, chunk.unpacked)
        if page.kind == DICTIONARY_PAGE:
            dictionary = page
        elif page.kind in (DATA_PAGE, DATA_PAGE_V2):
            if page.encoding not in (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY):
                raise Unsupported(f"encoding {page.encoding}")
            pages.append(page)
            rows += page.rows
        at = page.offset + page.packed
    if rows != chunk.values:
        raise ValueError(f"column {chunk.path}: pages are missing")
    return Column(CODECS[chunk.codec], deepest, dictionary, pages)


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
        head, at = thrift.varint(data, at)
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
            header, length = thrift.struct(data, 0)
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
