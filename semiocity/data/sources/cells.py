"""The loader of sources whose rows lie in parquet or Arrow files; imported by packing only.

A shard's rows come in the order of their keys, which is as good as random, while a row group of photographs is read and
unpacked as a whole. So a shard's values are gathered first: every file is opened once and every row group read at most
once, into a temporary file (in TMPDIR, as large as the shard). Memory holds one row group at a time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.data.images import Rejected
from semiocity.data.keys import printable, to_text
from semiocity.data.sources import pages
from semiocity.data.sources.base import Entry, FileSource, Raw
from semiocity.data.sources.columnar import batches, native
from semiocity.data.sources.files import look_up
from semiocity.data.sources.plain import open_planned, read_field, read_planned
from semiocity.data.sources.scalars import first_text
from semiocity.errors import UserError


class Gathered(NamedTuple):
    """What was found of a shard's values."""

    spool: IO[bytes]
    places: dict[tuple[str, int, str], tuple[int, int] | Any]
    """(file, row, column) → offset and length in the spool of bytes; other values themselves."""
    refused: dict[str, Rejected]
    """Files that must not be read."""


@contextmanager
def opened(source: FileSource, entries: Sequence[Entry]) -> Iterator[Callable[[Entry], Raw]]:
    """A function that gives the payloads of each of `entries`; it raises Rejected and UserError as `plain.load` does.

    Some fields of a row are values in a file of rows, others files of their own, or text in the plan: `entry.extra` has
    `file`, `size`, `row` and `cells` (field → column) for the first kind, `caption` for the last.
    Raises UserError for a file of rows that is gone, changed or damaged.
    """
    wanted: defaultdict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.extra.get("cells"):
            wanted[entry.extra["file"], entry.extra["size"]].append(entry)
    with TemporaryFile() as spool:
        gathered = Gathered(spool, {}, {})
        for (name, size), rows in sorted(wanted.items()):
            _gather(source, name, size, rows, gathered)
        spool.flush()
        yield partial(_load, source, gathered)


def _load(source: FileSource, gathered: Gathered, entry: Entry) -> Raw:
    payloads: dict[str, Any] = {field: read_field(source, entry, field) for field in entry.files}
    for field, column in entry.extra.get("cells", {}).items():
        name, row = entry.extra["file"], entry.extra["row"]
        if name in gathered.refused:
            raise gathered.refused[name]
        value = gathered.places[name, row, column]
        if isinstance(value, tuple):
            value = os.pread(gathered.spool.fileno(), value[1], value[0])
        payloads[field] = _payload(source, field, value)
    if "caption" in entry.extra:
        payloads["caption"] = entry.extra["caption"].encode("utf-8", "surrogateescape")
    return Raw(**payloads)


def _payload(source: FileSource, field: str, value: Any) -> bytes | None:
    """Bytes of a value; `datasets` keeps a path where it has not embedded them."""
    if field == "caption":
        text = first_text(value)
        return None if text is None else text.encode()
    if isinstance(value, str):
        name = to_text(os.fsencode(value))
        found = look_up(source.root, name, source.link_roots)
        if found is None:
            raise Rejected(f"{field}_missing", printable(name))
        if found.problem:
            raise Rejected(found.problem.reason, f"{field}: {printable(name)} {found.problem.detail}")
        return read_planned(source.root, name, found.size, field, source.link_roots)
    if value is None and field == "image":
        raise Rejected("image_missing", "the row has none")
    assert value is None or isinstance(value, bytes)
    return value


def _gather(source: FileSource, name: str, size: int, entries: list[Entry], gathered: Gathered) -> None:
    """All values of one file that the entries want."""
    wanted: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        for column in set(entry.extra["cells"].values()):
            wanted[column].append(entry.extra["row"])
    try:
        descriptor = open_planned(source.root, name, size, "image", source.link_roots)
    except Rejected as rejected:
        gathered.refused[name] = rejected
        return
    try:
        with native(descriptor, source.root / name) as file:
            read = _arrow if name.endswith(".arrow") else partial(_parquet, descriptor)
            for column, rows in sorted(wanted.items()):
                for row, value in read(file, column, sorted(rows)):
                    gathered.places[name, row, column] = _keep(gathered.spool, value)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        where = source.root / printable(name)
        raise UserError(f"{where}: cannot be read: {error}; fetch it again") from None
    finally:
        os.close(descriptor)


def _keep(spool: IO[bytes], value: Any) -> Any:
    """Bytes go into the spool, and what stays in memory is where."""
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if isinstance(value, bytes):
        return spool.tell(), spool.write(value)
    return value


def _arrow(file: Any, column: str, rows: list[int]) -> Iterator[tuple[int, Any]]:
    first = 0
    for batch in batches(file)[1]:
        values = batch.column(column)
        yield from ((row, values[row - first].as_py()) for row in rows if first <= row < first + batch.num_rows)
        first += batch.num_rows
    file.seek(0)
    _all_there(rows, first)


def _parquet(descriptor: int, file: Any, column: str, rows: list[int]) -> Iterator[tuple[int, Any]]:
    parquet = pq.ParquetFile(file)
    groups = _chunks(descriptor, parquet)
    first = 0
    for group in range(parquet.num_row_groups):
        many = parquet.metadata.row_group(group).num_rows
        inside = [row - first for row in rows if first <= row < first + many]
        if inside:
            found = _by_pages(descriptor, parquet, groups[group], column, inside) if groups else None
            if found is None:
                values = parquet.read_row_group(group, columns=[column]).column(0)
                found = ((row, values[row].as_py()) for row in inside)
            yield from ((first + row, value) for row, value in found)
        first += many
    _all_there(rows, first)


def _chunks(descriptor: int, parquet: Any) -> list[list[pages.Chunk]] | None:
    """The chunks of every row group; None where only pyarrow can read the file."""
    try:
        groups = pages.row_groups(descriptor)
    except pages.Unsupported:
        return None
    if [len(group) for group in groups] != [parquet.metadata.num_columns] * parquet.num_row_groups:
        raise ValueError("the footer is damaged")
    return groups


def _by_pages(
    descriptor: int, parquet: Any, chunks: list[pages.Chunk], column: str, rows: list[int]
) -> Iterable[tuple[int, Any]] | None:
    """The values, page by page; None where reading the whole row group costs less, or is the only way."""
    leaves = {chunk.path: i for i, chunk in enumerate(chunks)}
    data, path = (column, None) if column in leaves else (f"{column}.bytes", f"{column}.path")
    if data not in leaves or (path and path not in leaves):
        return None
    chunk, leaf = chunks[leaves[data]], parquet.schema.column(leaves[data])
    try:
        found = pages.read_column(descriptor, chunk, leaf.max_repetition_level, leaf.max_definition_level)
        if found.bytes_read(rows) >= chunk.unpacked:
            return None
        values = {row: pages.read_value(descriptor, found, row) for row in rows}
    except pages.Unsupported:
        return None
    if path and None in values.values():
        return None
    return values.items()


def _all_there(rows: list[int], many: int) -> None:
    if rows and rows[-1] >= many:
        raise IndexError(f"row {rows[-1]} of {many}")
