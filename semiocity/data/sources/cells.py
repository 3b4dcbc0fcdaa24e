"""The loader of sources whose rows lie in parquet or Arrow files; imported by packing only."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.data.images import Rejected
from semiocity.data.keys import printable, to_text
from semiocity.data.sources.base import Entry, FileSource, Raw
from semiocity.data.sources.columnar import batches, native
from semiocity.data.sources.files import look_up
from semiocity.data.sources.plain import open_planned, read_field, read_planned
from semiocity.data.sources.scalars import first_text
from semiocity.errors import UserError

OPEN_FILES = 16


def load(source: FileSource, entry: Entry) -> Raw:
    """A row of which some fields are values in a file of rows, and the others files of their own or text in the plan.

    `entry.extra`: `file`, `size`, `row`, and `cells` (field → column) for the first kind, `caption` for the last.
    Raises Rejected and UserError as `plain.load` does, and UserError for a file of rows that is damaged.
    """
    payloads: dict[str, Any] = {field: read_field(source, entry, field) for field in entry.files}
    cells = entry.extra.get("cells", {})
    if cells:
        found = _values(source, entry, sorted(set(cells.values())))
        payloads |= {field: _payload(source, field, found[column]) for field, column in cells.items()}
    if "caption" in entry.extra:
        payloads["caption"] = entry.extra["caption"].encode("utf-8", "surrogateescape")
    return Raw(**payloads)


def _payload(source: FileSource, field: str, value: Any) -> bytes | None:
    """Bytes of a value; a struct of `datasets` has bytes, or a path where they are not embedded."""
    if field == "caption":
        text = first_text(value)
        return None if text is None else text.encode()
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and path:
            return _linked(source, field, to_text(os.fsencode(path)))
    if value is None and field == "image":
        raise Rejected("image_missing", "the row has none")
    return value if value is None or isinstance(value, bytes) else bytes(value)


def _linked(source: FileSource, field: str, name: str) -> bytes:
    found = look_up(source.root, name, source.link_roots)
    if found is None:
        raise Rejected(f"{field}_missing", printable(name))
    if found.problem:
        raise Rejected(found.problem.reason, f"{field}: {printable(name)} {found.problem.detail}")
    return read_planned(source.root, name, found.size, field, source.link_roots)


def _values(source: FileSource, entry: Entry, columns: list[str]) -> dict[str, Any]:
    name, size, row = entry.extra["file"], entry.extra["size"], entry.extra["row"]
    descriptor = open_planned(source.root, name, size, columns[0], source.link_roots)
    try:
        with native(descriptor, source.root / name) as file:
            if name.endswith(".arrow"):
                return _from_arrow(file, row, columns)
            return _from_parquet(file, (name, size), row, columns)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise UserError(
            f"{source.root / printable(name)}: row {row} cannot be read: {error}; fetch the file again"
        ) from None
    finally:
        os.close(descriptor)


def _from_arrow(file: Any, row: int, columns: list[str]) -> dict[str, Any]:
    for batch in batches(file)[1]:
        if row < batch.num_rows:
            return {name: batch.column(name)[row].as_py() for name in columns}
        row -= batch.num_rows
    raise IndexError("no such row")


_last: OrderedDict[Any, Any] = OrderedDict()


def _from_parquet(file: Any, stamp: tuple[str, int], row: int, columns: list[str]) -> dict[str, Any]:
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row < rows:
            table = parquet.read_row_group(group, columns=columns)
            return {name: table.column(name)[row].as_py() for name in columns}
        row -= rows
    raise IndexError("no such row")
