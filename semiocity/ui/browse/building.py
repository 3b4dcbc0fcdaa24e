"""Builds an index (see index.py): the shards' parquets, and on request their tars, streamed into Arrow files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.data.columns import Column, Dataset
from semiocity.data.manifest import BASE, ShardPath
from semiocity.data.shard import ShardError
from semiocity.files import fsync, fsync_folder, write_json
from semiocity.ui.browse import contents
from semiocity.ui.browse.facets import Choices, class_columns, scalars_of, write_facets
from semiocity.ui.browse.index import ARROW, BATCH_ROWS, Options, chosen_shards, map_file

TOGETHER = 16
"""Shards read at the same time."""

Report = Callable[[int, int], None]
"""Called with shards done and shards in all."""


class Stopped(Exception):
    """The builder was told to stop."""


def build(dataset: Dataset, folder: Path, options: Options, report: Report, stop: Callable[[], bool]) -> None:
    """Write the index files into `folder`, which the caller made and will rename. Memory stays flat.

    Raises UserError when a shard's index is missing or damaged, Stopped when `stop` says so.
    """
    schema = _schema(dataset, options)
    shards = chosen_shards(dataset, options)
    choices = Choices(scalars_of(dataset, "str", "bool"))
    sink = folder / "rows.arrow"
    with sink.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in _batches(_tables(dataset, shards, options, schema, report, stop), schema):
            choices.see(batch)
            writer.write_batch(batch)
    facts = write_facets(dataset, map_file(sink), folder / "facets.arrow", choices.found(), options)
    for name in ("rows.arrow", "facets.arrow"):
        fsync(folder / name)
    write_json(folder / "facts.json", facts)
    fsync_folder(folder)


def _schema(dataset: Dataset, options: Options) -> pa.Schema:
    fields = [("shard", pa.int32()), ("row", pa.int32()), ("key", pa.string())]
    for column in dataset.columns.values():
        fields += [(f"{column.name}.tombstone", pa.string()), (f"{column.name}.reason", pa.string())]
        for name in column.fields:
            fields += [(f"{column.name}.{name}.length", pa.int64()), (f"{column.name}.{name}.ext", pa.string())]
        fields += [(f"{column.name}.{name}", ARROW[kind]) for name, kind in column.scalars.items()]
    fields.append(("~search", pa.string()))
    if _reads_labels(dataset, options):
        fields += [(f"~share.{i}", pa.float32()) for i in range(len(dataset.classes))]
    return pa.schema(fields)


def _reads_labels(dataset: Dataset, options: Options) -> bool:
    return any(source.startswith("~") for source in class_columns(dataset, options).values())


def _tables(
    dataset: Dataset, shards: range, options: Options, schema: pa.Schema, report: Report, stop: Callable[[], bool]
) -> Iterator[pa.Table]:
    """A table a shard, in order; several are read at the same time."""
    with ThreadPoolExecutor(min(TOGETHER, 4 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(shards), TOGETHER):
            group = shards[start : start + TOGETHER]
            for done, table in enumerate(pool.map(lambda s: _shard_table(dataset, s, options, schema), group), start=1):
                if stop():
                    raise Stopped
                yield table
                report(start + done, len(shards))


def _shard_table(dataset: Dataset, shard: int, options: Options, schema: pa.Schema) -> pa.Table:
    keys = _read(dataset, dataset.column(BASE), shard, ["key"])["key"]
    found: dict[str, Any] = {}
    for column in dataset.columns.values():
        names = _names(column)
        if shard >= shards_of(dataset, column.name):
            found |= {
                f"{column.name}.{name}": pa.nulls(len(keys), schema.field(f"{column.name}.{name}").type)
                for name in names
            }
            continue
        table = _read(dataset, column, shard, ["key", *names])
        if not table["key"].equals(keys):
            raise ShardError(
                f"{ShardPath(column.folder, shard).parquet}: its keys are not those of the column {BASE}. "
                f"`semiocity verify {dataset.path}` tells more"
            )
        found |= {f"{column.name}.{name}": table[name] for name in names}
    rows = len(keys)
    texts = [keys, *(found[name] for name in _searched(dataset))]
    if options.contents:
        columns = [c for c in dataset.columns.values() if shard < shards_of(dataset, c.name)]
        seen = contents.read(columns, shard, rows, len(dataset.classes) if _reads_labels(dataset, options) else 0)
        found |= {f"~share.{i}": pa.array(shares) for i, shares in enumerate(seen.shares.T)}
        texts.append(pa.array(seen.texts, pa.string()))
    # A newline between texts: no search word has one, so none is found across a border.
    joined = pc.binary_join_element_wise(*texts, "\n", null_handling="skip")
    found |= {
        "shard": pa.array(np.full(rows, shard, np.int32)),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
        "key": keys,
        "~search": pc.utf8_lower(joined),
    }
    return pa.table({name: found[name] for name in schema.names}).cast(schema)


def _searched(dataset: Dataset) -> list[str]:
    """Texts that a search looks into. A caption's beginning is not looked at where the caption is there too."""
    names = scalars_of(dataset, "str")
    return [name for name in names if not name.endswith(".short") or f"{name.removesuffix('short')}text" not in names]


def shards_of(dataset: Dataset, column: str) -> int:
    """Shards that a column has: fewer than base when rows were added since it was made."""
    found: int = dataset.facts["columns"][column]["shards"]
    return found


def _names(column: Column) -> list[str]:
    """What the index takes from the parquets of a column."""
    fields = [f"{name}.{what}" for name in column.fields for what in ("length", "ext")]
    return ["tombstone", "reason", *fields, *column.scalars]


def _read(dataset: Dataset, column: Column, shard: int, names: list[str]) -> pa.Table:
    path = ShardPath(column.folder, shard).parquet
    try:
        return pq.read_table(path, columns=names, memory_map=False, use_threads=False).select(names)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ShardError(
            f"{path}: index cannot be read ({error}). `semiocity verify {dataset.path}` tells more"
        ) from None


def _batches(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of BATCH_ROWS; the last may be shorter."""
    pending = schema.empty_table()
    for table in tables:
        pending = pa.concat_tables([pending, table])
        while len(pending) >= BATCH_ROWS:
            yield pending.slice(0, BATCH_ROWS).combine_chunks().to_batches()[0]
            pending = pending.slice(BATCH_ROWS)
    if len(pending):
        yield pending.combine_chunks().to_batches()[0]
