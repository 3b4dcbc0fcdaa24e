"""Chooses a shard's rows: reads those columns of its indexes that a selection names, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.data.aspects import bucket_ids
from semiocity.data.buckets import BucketOptions
from semiocity.data.manifest import BASE, ShardPath
from semiocity.data.selection import HEIGHT, SPLIT, WIDTH, Selection, column_of
from semiocity.data.shard import ShardError
from semiocity.errors import UserError

if TYPE_CHECKING:
    from semiocity.data.columns import Dataset


class Chosen(NamedTuple):
    """Rows of one shard."""

    mask: np.ndarray
    """bool [rows of the shard]"""
    splits: pa.ChunkedArray | None
    """The split of every row of the shard, null where it has none; None when the selection has no splits."""
    buckets: np.ndarray | None
    """uint16 [rows of the shard]; 0 where the mask is false. None without buckets."""


class Index:
    """Columns of the indexes of one shard, each read once."""

    def __init__(self, dataset: Dataset, shard: int) -> None:
        self.dataset, self.shard = dataset, shard
        self._tables: dict[str, pa.Table] = {}

    def load(self, column: str, names: Sequence[str]) -> pa.Table:
        """A table with at least those columns of a column's index."""
        there = self._tables.get(column)
        known = there.column_names if there is not None else []
        lacking = [name for name in dict.fromkeys(names) if name not in known]
        if lacking:
            read = read_index(self.dataset, column, self.shard, lacking)
            for name in known:
                read = read.append_column(name, there[name])  # type: ignore[index]
            self._tables[column] = read
        return self._tables[column]

    def load_all(self, selection: Selection, policies: Mapping[str, Sequence[str]], with_split: bool) -> None:
        """Read what `choose` needs, each index once."""
        wanted = {column: list(names) for column, names in policies.items()}
        if selection.filter is not None:
            for column, names in selection.filter.reads.items():
                wanted[column] += names
        dotted = [selection.split_by] if with_split else []
        for name in dotted + ([WIDTH, HEIGHT] if selection.buckets else []):
            wanted[column_of(name)].append(name.partition(".")[2])  # type: ignore[arg-type,union-attr]
        for column, names in wanted.items():
            if names:
                self.load(column, names)

    def array(self, dotted: str) -> pa.ChunkedArray:
        """COLUMN.SCALAR of every row."""
        column, _, name = dotted.partition(".")
        return self.load(column, [name]).column(name)


def read_index(dataset: Dataset, column: str, shard: int, names: Sequence[str]) -> pa.Table:
    """Some columns of one shard's parquet. Raises ShardError when it is damaged or has another number of rows."""
    path = ShardPath(dataset.column(column).folder, shard)
    try:
        with _open_index(dataset, column, path) as file:
            # A name with a dot is a path to Parquet, and `text` would bring `text.offset` along.
            table = file.read(columns=list(names), use_threads=False).select(list(names))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ShardError(f"{path.parquet}: index cannot be read ({error}); see `semiocity verify`") from None
    expected = dataset.shard_entries(column)[shard]["rows"]
    if len(table) != expected:
        raise ShardError(f"{path.parquet}: {len(table)} rows, the manifest says {expected}; see `semiocity verify`")
    return table


def _open_index(dataset: Dataset, column: str, path: ShardPath) -> pq.ParquetFile:
    """The copy on this node's own disk if there is one, else the shared file."""
    if dataset.stage is not None:
        copy = dataset.stage.find(path.parquet, dataset.shard_entries(column)[path.shard]["parquet_sha256"])
        if copy is not None:
            with suppress(OSError, pa.ArrowException):  # it may have been evicted since
                return pq.ParquetFile(copy)
    return pq.ParquetFile(path.parquet)


def choose(dataset: Dataset, selection: Selection, shard: int, by_split: bool = False) -> Chosen:
    """The rows of a shard that a selection has. `by_split`: say also which split each belongs to.

    Raises UserError when a row breaks the policy `error`, or has no size and buckets are wanted.
    """
    index = Index(dataset, shard)
    with_split = selection.split_by is not None and (by_split or selection.split is not None)
    policies = {column: _policy_names(dataset, selection, shard, column) for column in selection.columns}
    index.load_all(selection, policies, with_split)
    mask = np.ones(dataset.shard_entries(BASE)[shard]["rows"], dtype=bool)
    if _failed(dataset, BASE, shard):  # a row that was taken down is no row, whatever the join says
        mask &= np.asarray(index.array(f"{BASE}.tombstone").is_null())
    splits = index.array(selection.split_by) if with_split else None  # type: ignore[arg-type]
    if selection.split is not None:
        mask &= np.asarray(pc.fill_null(pc.equal(splits, selection.split), False))
    if selection.filter is not None:
        tables = {column: index.load(column, names) for column, names in selection.filter.reads.items()}
        mask &= np.asarray(selection.filter.mask(tables))
    faults = {column: _bad(index, column, names) for column, names in policies.items() if names}
    for column, bad in faults.items():
        if selection.join.get(column) != "error":
            mask &= ~bad
    for column, bad in faults.items():
        if (mask & bad).any():
            _refuse(dataset, index, column, np.flatnonzero(mask & bad))
    if selection.buckets is None:
        return Chosen(mask, splits, None)
    return Chosen(mask, splits, _buckets(index, selection.buckets, mask))


def opens_nothing(dataset: Dataset, selection: Selection, shard: int) -> bool:
    """Whether the number of rows follows from the manifests: no filter, no policy, no failed row."""
    return (
        selection.filter is None
        and not set(selection.join.values()) - {"none"}
        and selection.split_by in (SPLIT, None)
        and not any(_failed(dataset, c, shard) for c in selection.joined if c == BASE or c not in selection.join)
    )


def _failed(dataset: Dataset, column: str, shard: int) -> bool:
    return any(dataset.shard_entries(column)[shard]["tombstones"].values())


def _policy_names(dataset: Dataset, selection: Selection, shard: int, column: str) -> list[str]:
    """The columns of an index that tell which rows a column's policy is about; empty when there can be none."""
    policy = selection.join.get(column)
    if policy == "none" or (policy is None and column not in selection.joined):
        return []
    names = ["tombstone"] if _failed(dataset, column, shard) else []
    if policy is not None:
        known = dataset.columns[column]
        wanted = [name.partition(".")[2] for name in selection.fields if column_of(name) == column]
        names += [f"{name}.offset" if name in known.fields else name for name in wanted]
    return names


def _bad(index: Index, column: str, names: Sequence[str]) -> np.ndarray:
    """bool [rows]: rows that failed or lack something."""
    table = index.load(column, names)
    bad = np.zeros(len(table), dtype=bool)
    for name in names:
        missing = np.asarray(table.column(name).is_null())
        bad |= ~missing if name == "tombstone" else missing
    return bad


def _refuse(dataset: Dataset, index: Index, column: str, rows: np.ndarray) -> None:
    keys = index.array(f"{column}.key")
    raise UserError(
        f'{dataset.path}: join.{column} = "error", but {len(rows)} rows of shard {index.shard:08d} failed there or '
        f"lack a field, the first is {keys[int(rows[0])]}. Run the column's job again, or choose skip or none"
    )


def _buckets(index: Index, wanted: BucketOptions, mask: np.ndarray) -> np.ndarray:
    width, height = (_size(index, name, mask) for name in (WIDTH, HEIGHT))
    found = np.zeros(len(mask), dtype=np.uint16)
    found[mask] = bucket_ids(width, height, wanted.resolved())
    return found


def _size(index: Index, name: str, mask: np.ndarray) -> np.ndarray:
    """The sizes of the rows that the mask has."""
    values = index.array(name).filter(pa.array(mask))
    usable = np.asarray(pc.fill_null(pc.greater(values, 0), False))
    if not usable.all():
        key = index.array(f"{BASE}.key")[int(np.flatnonzero(mask)[~usable][0])]
        raise UserError(f"{index.dataset.path}: row {key} has no {name}, so no bucket; leave it out by the filter")
    return np.asarray(values)
