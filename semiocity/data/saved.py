"""Reading a saved view: counts of all shards at once, the rows of a shard when it is read."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.config import check
from semiocity.data.buckets import BucketOptions
from semiocity.data.columns import Dataset, View
from semiocity.data.manifest import FOLDER_SHARDS
from semiocity.data.pinned import pinned
from semiocity.data.selection import Selection, select
from semiocity.data.view_build import BUCKET, SCHEMA
from semiocity.data.views import check_fresh, check_reading, part_file, read_view, view_folder
from semiocity.errors import UserError

OPEN_PARTS = 8
"""Parts, each an open file, that a view keeps."""

GROUPS = 8
"""Row groups (the rows of some 32 shards each) that a view keeps."""


def open_view(dataset: Path, name: str, split: str | None = None, fields: Sequence[str] | None = None) -> SavedView:
    """See `Dataset.saved_view`."""
    facts = read_view(dataset, name)
    check_reading(facts, fields or (), [] if split is None else [split], dataset)
    manifest = pinned(Path(dataset), facts["columns"])
    # Shards that columns have been given since are none of the view's.
    manifest["columns"] = {name: {**column, "shards": facts["shards"]} for name, column in manifest["columns"].items()}
    data = Dataset(Path(dataset), manifest)
    check_fresh(data.path, facts)
    buckets = check(facts["buckets"], BucketOptions, where=f"view {name}") if facts["buckets"] else None
    whole = select(data.facts, dataset, facts["fields"], None, facts["split"], facts["filter"], facts["join"], buckets)
    selection = replace(whole, split=split)
    return SavedView(data, selection, SavedRows(Path(dataset), facts, selection), fields)


class SavedView(View):
    """A view whose rows, and aspect buckets if it has any, were chosen when it was built."""

    source: SavedRows

    @property
    def facts(self) -> dict[str, Any]:
        """view.json"""
        return self.source.facts

    @property
    def bucket_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height in pixels of each bucket; empty when the view has none."""
        return self.selection.buckets.resolved() if self.selection.buckets else ()

    @cached_property
    def bucket_counts(self) -> np.ndarray:
        """int64 [shards, buckets]: rows of the view. Raises UserError when the view has no buckets."""
        return self.source.bucket_counts()

    def buckets_of(self, shard: int) -> np.ndarray:
        """uint16 [shard_sizes[shard]]: the bucket of each of the view's rows of a shard, in their order."""
        return self.source.buckets(shard)

    def bucket_of(self, i: int) -> int:
        """The bucket of row i."""
        shard, place = self._place(i)
        return int(self.buckets_of(shard)[place])


class SavedRows:
    """The rows of a saved view."""

    def __init__(self, dataset: Path, facts: dict[str, Any], selection: Selection) -> None:
        self.folder = view_folder(dataset, facts["name"]) / facts["revision"]
        self.facts = facts
        self.selection = selection
        self._parts: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], dict[int, tuple[np.ndarray, np.ndarray]]] = OrderedDict()
        self._starts: dict[int, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": OrderedDict()}  # open files stay with the process

    @property
    def identity(self) -> str:
        return self.selection.identity(self.facts["digests"])

    def shard_sizes(self) -> list[int]:
        found = self._lines("selected")
        counts = np.zeros(self.facts["shards"], dtype=np.int64)
        np.add.at(counts, np.asarray(found["shard"]), np.asarray(found["selected"]))
        if self.selection.split is None and counts.sum() != self.facts["rows"]:
            raise self._damaged(self.folder, f"{counts.sum()} rows, view.json says {self.facts['rows']}")
        return [int(count) for count in counts]

    def bucket_counts(self) -> np.ndarray:
        wanted = len(self._wanted().resolved())
        found = self._lines("bucket_counts")
        counts = np.zeros((self.facts["shards"], wanted), dtype=np.int64)
        flat = np.asarray(pc.list_flatten(found["bucket_counts"])).reshape(-1, wanted)
        np.add.at(counts, np.asarray(found["shard"]), flat)
        return counts

    def rows(self, shard: int) -> np.ndarray:
        return self._shard(shard)[0]

    def buckets(self, shard: int) -> np.ndarray:
        self._wanted()
        return self._shard(shard)[1]

    def _wanted(self) -> BucketOptions:
        if self.selection.buckets is None:
            raise UserError(f"view {self.facts['name']} has no buckets; add [buckets] to its file and build it again")
        return self.selection.buckets

    def _lines(self, name: str) -> pa.Table:
        """Columns `shard` and `name` of all lines of the view. Opens every part once."""
        tables = [SCHEMA.empty_table().select(["shard", name])]
        for thousand in range(len(self.facts["parts"])):
            path = part_file(self.folder, thousand)
            try:
                with pq.ParquetFile(path) as file:
                    table = file.read(columns=["shard", name, "split"], use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(path, error) from None
            tables.append(self._of_split(table.replace_schema_metadata()).select(["shard", name]))
        return pa.concat_tables(tables)

    def _shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the shard that belong to the view, ascending; the bucket of each)"""
        thousand = shard // FOLDER_SHARDS
        path = part_file(self.folder, thousand)
        try:
            file = self._part(thousand, path)
            place = (thousand, bisect_right(self._starts[thousand], shard) - 1)
            if place not in self._groups:
                self._groups[place] = _by_shard(self._of_split(file.read_row_group(place[1], use_threads=False)))
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(path, error) from None
        self._groups.move_to_end(place)
        while len(self._groups) > GROUPS:
            self._groups.popitem(last=False)
        nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=BUCKET)
        return self._groups[place].get(shard, nothing)

    def _part(self, thousand: int, path: Path) -> pq.ParquetFile:
        if thousand not in self._parts:
            file = pq.ParquetFile(path)
            groups = range(file.metadata.num_row_groups)
            column = file.schema_arrow.names.index("shard")
            self._starts[thousand] = [file.metadata.row_group(g).column(column).statistics.min for g in groups]
            self._parts[thousand] = file
        self._parts.move_to_end(thousand)
        while len(self._parts) > OPEN_PARTS:
            self._parts.popitem(last=False)[1].close()
        return self._parts[thousand]

    def _of_split(self, table: pa.Table) -> pa.Table:
        if self.selection.split is None:
            return table
        return table.filter(pc.fill_null(pc.equal(table["split"], self.selection.split), False))

    def _damaged(self, path: Path, error: object) -> UserError:
        return UserError(f"{path}: damaged ({error}). Remove {path} and build the view again with `semiocity view`")


def _by_shard(table: pa.Table) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Shard → (its rows of all lines together, ascending; their buckets)."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for line in table.select(["shard", "rows", "bitmap", "buckets"]).to_pylist():
        bits = np.frombuffer(line["bitmap"], dtype=np.uint8)
        rows = np.flatnonzero(np.unpackbits(bits, count=line["rows"], bitorder="little"))
        buckets = np.frombuffer(line["buckets"], dtype=BUCKET)
        if line["shard"] in found:
            before, theirs = found[line["shard"]]
            rows, buckets = np.concatenate([before, rows]), np.concatenate([theirs, buckets])
            order = np.argsort(rows)
            rows, buckets = rows[order], buckets[order] if len(buckets) else buckets
        found[line["shard"]] = rows, buckets
    return found
