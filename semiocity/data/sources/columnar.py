"""Parquet and Arrow files as a source sees them while planning: columns, types, and small values, never payloads.

pyarrow is imported inside the functions: a login node that plans no such source needs none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiocity.data.keys import printable
from semiocity.data.sources.base import FileSource, Rejection
from semiocity.data.sources.files import Found, open_below, walk
from semiocity.errors import UserError

KINDS = ("parquet", "arrow")
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Table:
    """One file of rows."""

    found: Found
    rows: int
    types: dict[str, str]
    """Column → image (encoded bytes, or {bytes, path}), text, texts (a list of them), or other."""
    mean_bytes: dict[str, int]
    """Column → bytes of a value, on the average."""
    features: dict[str, Any] = field(default_factory=dict)
    """What the library `datasets` noted of the columns, if it wrote the file."""


def need_pyarrow() -> None:
    """Raises UserError that says what to install."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError(
            'reading parquet and Arrow files needs pyarrow, here as well: pip install "semiocity[data]"'
        ) from None


def find(source: FileSource, below: str, kinds: Sequence[str] = KINDS) -> Iterator[Found | Rejection]:
    """The files of rows below `root/below`, in sorted order; what must not be read as a rejection."""
    for found in walk(source.root, below, also=source.link_roots):
        if found.is_folder or found.extension in kinds:
            yield found.problem or found


def open_table(source: FileSource, found: Found) -> Table:
    """The footer (parquet) or the headers of the batches (Arrow) of a file. Raises UserError when it is damaged."""
    need_pyarrow()
    import pyarrow as pa

    where = source.root / printable(found.name)
    try:
        with _file(source, found.name) as file:
            if found.extension == "parquet":
                return _parquet(found, file)
            schema, found_batches = batches(file)
            rows = sum(batch.num_rows for batch in found_batches)
            mean = found.size // max(1, rows)
            return Table(found, rows, _types(schema), dict.fromkeys(schema.names, mean), _features(schema))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {error}; fetch it again") from None


def read_columns(source: FileSource, table: Table, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of small columns, row by row; `{}` for each row when there are none. Raises UserError."""
    import pyarrow as pa

    if not columns:
        yield from ({} for _ in range(table.rows))
        return
    try:
        with _file(source, table.found.name) as file:
            for batch in _select(file, table.found.extension, list(dict.fromkeys(columns))):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{source.root / printable(table.found.name)}: cannot be read: {error}; fetch it again"
        ) from None


def check_columns(table: Table, wanted: Mapping[str, str], where: Path) -> None:
    """Raises UserError unless the file has the columns. `wanted`: column → the recipe's key that names it."""
    for column, key in wanted.items():
        if column not in table.types:
            raise UserError(
                f"source.{key}: {where / printable(table.found.name)} has no column {column!r}; "
                f"it has {', '.join(table.types)}"
            )


def _parquet(found: Found, file: Any) -> Table:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    schema, metadata = parquet.schema_arrow, parquet.metadata
    total: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(i)
            column = chunk.path_in_schema.partition(".")[0]
            total[column] = total.get(column, 0) + chunk.total_compressed_size
    rows = metadata.num_rows
    return Table(found, rows, _types(schema), {n: b // max(1, rows) for n, b in total.items()}, _features(schema))


def _types(schema: Any) -> dict[str, str]:
    return {item.name: _type(item.type) for item in schema}


def _type(kind: Any) -> str:
    import pyarrow.types as is_

    if is_.is_binary(kind) or is_.is_large_binary(kind):
        return "image"
    if is_.is_struct(kind):
        inner = {kind.field(i).name for i in range(kind.num_fields)}
        return "image" if {"bytes", "path"} <= inner else "other"
    if is_.is_string(kind) or is_.is_large_string(kind):
        return "text"
    if is_.is_list(kind) or is_.is_large_list(kind):
        return "texts" if _type(kind.value_type) == "text" else "other"
    if is_.is_dictionary(kind):
        return _type(kind.value_type)
    return "other"


def _features(schema: Any) -> dict[str, Any]:
    """`datasets` keeps its types as JSON in the schema's metadata. Nothing of it is executed."""
    try:
        known = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return known if isinstance(known, dict) else {}


@contextmanager
def _file(source: FileSource, name: str) -> Iterator[Any]:
    descriptor = open_below(source.root, name, source.link_roots)
    try:
        with native(descriptor, source.root / name) as file:
            yield file
    finally:
        os.close(descriptor)


def native(descriptor: int, path: Path) -> Any:
    """The open file as Arrow maps it: what is not touched is not read, and costs no memory."""
    import pyarrow as pa

    opened = Path(f"/proc/self/fd/{descriptor}")  # the very file that was checked, whatever its name means by now
    return pa.memory_map(str(opened if opened.exists() else path))


def batches(file: Any) -> tuple[Any, list[Any]]:
    """Schema and record batches of an Arrow file in either of its two forms; `datasets` writes streams."""
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        return reader.schema, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    stream = pa.ipc.open_stream(file)
    return stream.schema, list(stream)


def _select(file: Any, extension: str, columns: list[str]) -> Iterator[Any]:
    if extension == "parquet":
        import pyarrow.parquet as pq

        yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns)
        return
    for batch in batches(file)[1]:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS).select(columns)
