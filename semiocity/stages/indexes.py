"""Scalars of several columns of a shard side by side, from their parquet alone."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.data.columns import Dataset
from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardError
from semiocity.errors import UserError


def live(dataset: Dataset, shard: int, scalars: Sequence[str]) -> pa.Table:
    """The rows of a shard that are a tombstone in none of the columns: `key`, `row` (place in the shard), and the
    `scalars`, COLUMN.SCALAR, under these names. Raises UserError for what is damaged or does not belong together."""
    wanted: dict[str, list[str]] = {}
    for reference in scalars:
        column, _, name = reference.partition(".")
        wanted.setdefault(column, []).append(name)
    tables = {c: read_index(dataset, c, shard, ["key", "tombstone", *names]) for c, names in wanted.items()}
    keys = next(iter(tables.values())).column("key")
    if any(table.column("key") != keys for table in tables.values()):
        raise UserError(
            f"{dataset.path}: shard {shard:08d}: {', '.join(tables)} have different keys; `semiocity verify` tells more"
        )
    alive = functools.reduce(pc.and_, [pc.is_null(table.column("tombstone")) for table in tables.values()])
    found = {f"{column}.{name}": tables[column].column(name) for column, names in wanted.items() for name in names}
    rows = pa.array(np.arange(len(keys), dtype=np.int32))
    return pa.table({"key": keys, "row": rows, **found}).filter(alive)


def tombstones(dataset: Dataset, shard: int, columns: Iterable[str]) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """All keys of a shard in order, and (kind, `COLUMN: reason`) of those that are a tombstone in one of `columns`."""
    keys: list[str] = []
    dead: dict[str, tuple[str, str]] = {}
    for column in columns:
        table = read_index(dataset, column, shard, ["key", "tombstone", "reason"])
        keys = table.column("key").to_pylist()
        for row in table.filter(pc.is_valid(table.column("tombstone"))).to_pylist():
            dead.setdefault(row["key"], (row["tombstone"], f"{column}: {row['reason']}"))
    return keys, dead


def read_index(dataset: Dataset, column: str, shard: int, names: list[str]) -> pa.Table:
    """Columns of a shard's parquet. Raises ShardError naming the file when it cannot be read."""
    path = ShardPath(dataset.column(column).folder, shard).parquet
    try:
        return pq.read_table(path, columns=names, memory_map=False, use_threads=False)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ShardError(
            f"{path}: index cannot be read ({error}). `semiocity verify {dataset.path}` tells more"
        ) from None
