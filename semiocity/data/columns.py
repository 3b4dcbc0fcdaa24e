"""A dataset as its users see it: columns side by side, rows by number.

Fields are named COLUMN.FIELD, such as base.image. Shard number i of every column has the same keys in the same order,
so that a join is nothing but opening the same shard number in each column.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from semiocity.config import check, digest
from semiocity.data.manifest import BASE, column_folder, read_manifest, require, shard_entries
from semiocity.data.pinned import first_shards
from semiocity.data.receipts import ShardEntries
from semiocity.data.recipe import ClassSpec
from semiocity.data.rows import choose, opens_nothing
from semiocity.data.selection import SPLIT, Policy, Selection, select
from semiocity.data.shard import ShardError, ShardPath, ShardReader
from semiocity.data.staging import Stage
from semiocity.errors import UserError

if TYPE_CHECKING:
    from semiocity.data.saved import SavedView

OPEN_SHARDS = 16
"""Shard readers, each with an open file, that a dataset keeps."""

ROW_LISTS = 64
"""Lists of a shard's rows that a view keeps."""


@dataclass(frozen=True)
class Column:
    """The current revision of one column."""

    name: str
    revision: str
    digest: str
    folder: Path
    fields: dict[str, str]
    """Logical field → member extension."""
    scalars: dict[str, str]
    """Scalar → int, float, str or bool."""
    tombstones: dict[str, int]
    """permanent, retry → rows that failed."""


class Dataset:
    """A dataset on disk. Opening reads the dataset's manifest; everything else is read when it is asked for."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.facts = manifest
        """The manifest."""
        self.name: str = manifest["name"]
        self.digest: str = manifest["digest"]
        """sha256 over the base column's keys and bytes."""
        self.splits: dict[str, int] = manifest["splits"]
        """Split → rows."""
        self.recipe: dict[str, Any] = manifest["recipe"]
        """The resolved recipe, without the folder that it was read from."""
        self.columns: dict[str, Column] = {
            name: Column(
                name,
                entry["revision"],
                entry["digest"],
                column_folder(path, name, entry["revision"]),
                entry["fields"],
                entry["scalars"],
                entry["tombstones"],
            )
            for name, entry in manifest["columns"].items()
        }
        self.classes: tuple[ClassSpec, ...] = tuple(
            check(item, ClassSpec, where=str(path / "manifest.json")) for item in manifest["recipe"]["classes"] or ()
        )
        self.ignore_id: int | None = manifest["recipe"]["ignore_id"]
        self.image_size: tuple[int, int] | None = _image_size(manifest["recipe"])
        """Width and height of every picture, or None when they differ."""
        self.stage: Stage | None = None
        """Copies of shards on this node's own disk, which are read where they are there."""
        self._entries: dict[str, ShardEntries] = {}
        self._readers: OrderedDict[tuple[str, int], ShardReader] = OrderedDict()

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Raises UserError when `path` holds no packed dataset."""
        return cls(Path(path).absolute(), read_manifest(Path(path)))

    @classmethod
    def as_of(cls, path: Path, shards: int) -> Dataset:
        """The dataset as it was when it had so many shards, before rows were added."""
        return cls(Path(path).absolute(), first_shards(Path(path), shards))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict()}  # open files stay with the process

    @property
    def shards(self) -> int:
        """Shards of every column."""
        shards: int = self.facts["columns"][BASE]["shards"]
        return shards

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """RGB of each class id."""
        return [spec.color for spec in self.classes]

    def rows(self, split: str | None = None) -> int:
        """Rows of a split, or of all. Raises UserError for a split that does not exist."""
        if split is None:
            return sum(self.splits.values())
        if split not in self.splits:
            raise UserError(f"{self.path}: no split {split}; there are {', '.join(self.splits)}")
        return self.splits[split]

    def has(self, field: str) -> bool:
        """Whether COLUMN.FIELD exists, as a field or a scalar."""
        column, dot, name = field.partition(".")
        found = self.columns.get(column)
        return bool(dot) and found is not None and (name in found.fields or name in found.scalars)

    def require(self, fields: Sequence[str]) -> None:
        """Raises UserError naming the first of `fields` that the dataset lacks."""
        require(self.facts, fields, self.path)

    def column(self, name: str) -> Column:
        """Raises UserError when there is no such column, or its parents have changed since it was made."""
        if name not in self.columns:
            raise UserError(f"{self.path}: no column {name}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def shard_entries(self, column: str) -> ShardEntries:
        """What the column's manifest says of each shard: rows, bytes, sha256, splits, tombstones, …; read lazily."""
        if column not in self._entries:
            self._entries[column] = shard_entries(self.path, column, self.column(column).revision)
        return self._entries[column]

    def reader(self, column: str, shard: int) -> ShardReader:
        """An open reader; the last few are kept. Raises ShardError when the shard is damaged."""
        place = (column, shard)
        if place not in self._readers:
            path, entry = ShardPath(self.column(column).folder, shard), self.shard_entries(column)[shard]
            reader = ShardReader(path, *(self.stage.find_shard(path, entry) if self.stage else ()))
            expected = entry["rows"]
            if len(reader) != expected:
                raise ShardError(
                    f"{reader.path.parquet}: {len(reader)} rows, the manifest says {expected}. "
                    f"`semiocity verify {self.path}` tells more"
                )
            self._readers[place] = reader
        self._readers.move_to_end(place)
        # The oldest is only let go of: a caller may still hold it, and it closes its file when nobody does.
        while len(self._readers) > OPEN_SHARDS:
            self._readers.popitem(last=False)
        return self._readers[place]

    def view(
        self,
        fields: Sequence[str],
        split: str | None = None,
        filter: str | None = None,
        *,
        split_by: str | None = SPLIT,
        join: Mapping[str, Policy] | None = None,
    ) -> View:
        """The rows of a split (None: of all) with the given fields, narrowed by a filter expression.

        `join` says for columns what becomes of rows that failed. With a filter, or a policy other than none, counting
        the rows opens every shard's index: for large datasets save the view (`semiocity view`).
        Raises UserError when something is missing or the filter is wrong.
        """
        selection = select(self.facts, self.path, fields, split, split_by, filter, join)
        return View(self, selection, OnTheFly(self, selection))

    def saved_view(self, name: str, split: str | None = None, fields: Sequence[str] | None = None) -> SavedView:
        """A view that `semiocity view` built, NAME or NAME@REVISION, with the column revisions that it pins.

        split: rows of one of its splits; None takes all. fields: those that are read; by default all of the view's.
        Raises UserError when there is no such view, split or field, or when its columns have changed since.
        """
        from semiocity.data.saved import open_view

        view = open_view(self.path, name, split, fields)
        view.dataset.stage = self.stage
        return view

    def pick(self, fields: Sequence[str], split: str | None, view: str | None = None) -> View:
        """As jobs name their rows: a split of the dataset, or of a saved view."""
        return self.view(fields, split) if view is None else self.saved_view(view, split, fields)


class RowSource(Protocol):
    """Where a view has its rows from: chosen on the fly, or saved."""

    @property
    def identity(self) -> str:
        """Names the rows; see `Selection.identity`."""
        ...

    def shard_sizes(self) -> list[int]:
        """Rows of each shard that belong to the view."""
        ...

    def rows(self, shard: int) -> np.ndarray:
        """int64, ascending: the rows of a shard that belong to the view."""
        ...


class OnTheFly:
    """Rows chosen when they are asked for."""

    def __init__(self, dataset: Dataset, selection: Selection) -> None:
        self.dataset, self.selection = dataset, selection

    @property
    def identity(self) -> str:
        return self.selection.identity({name: column.digest for name, column in self.dataset.columns.items()})

    def shard_sizes(self) -> list[int]:
        return [self._size(shard) for shard in range(self.dataset.shards)]

    def rows(self, shard: int) -> np.ndarray:
        return np.flatnonzero(choose(self.dataset, self.selection, shard).mask)

    def _size(self, shard: int) -> int:
        if not opens_nothing(self.dataset, self.selection, shard):
            return len(self.rows(shard))
        entry = self.dataset.shard_entries(BASE)[shard]
        split = self.selection.split
        return int(entry["rows"] if split is None else entry["splits"].get(split, 0))


class View:
    """Rows of a dataset by number, in order of shard and key.

    Rows that are a tombstone in any column that fields are read from are left out, for every reader of the same view
    alike; a row that merely lacks an optional field (a picture without a caption) is there and gives None. `join`
    changes that for a column.
    """

    def __init__(
        self, dataset: Dataset, selection: Selection, source: RowSource, fields: Sequence[str] | None = None
    ) -> None:
        self.dataset = dataset
        self.selection = selection
        self.fields = tuple(selection.fields if fields is None else fields)
        self.split = selection.split
        self.source = source
        self._rows: OrderedDict[int, np.ndarray] = OrderedDict()

    @cached_property
    def digest(self) -> str:
        """Equal for views that have the same rows with the same bytes in the same order."""
        whole = self.source.identity
        if set(self.fields) == set(self.selection.fields):
            return whole
        return digest({"view": whole, "fields": sorted(self.fields)}, 64)

    @cached_property
    def shard_sizes(self) -> list[int]:
        """Rows of each shard that belong to the view."""
        return self.source.shard_sizes()

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(np.asarray(self.shard_sizes, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, i: int) -> tuple[int, int]:
        """(shard, row of the shard) of row i of the view. Raises IndexError."""
        shard, place = self._place(i)
        return shard, int(self.rows_of(shard)[place])

    def where(self, i: int) -> str:
        """The shard of row i, for messages."""
        return str(self.dataset.reader(BASE, self.locate(i)[0]).path)

    def key(self, i: int) -> str:
        """The key of row i."""
        shard, row = self.locate(i)
        return self.dataset.reader(BASE, shard).keys[row]

    def read(self, i: int, check: bool = True) -> dict[str, Any]:
        """Field → bytes of row i (for a scalar its value); None where the row has none. `check` compares every crc32,
        which takes three quarters of the time."""
        shard, row = self.locate(i)
        found: dict[str, Any] = {}
        for field in self.fields:
            column, _, name = field.partition(".")
            reader = self.dataset.reader(column, shard)
            if name in self.dataset.columns[column].fields:
                found[field] = reader.read(row, name, check)
            else:
                found[field] = reader.scalar(row, name)
        return found

    def scalars(self, i: int, column: str = BASE) -> dict[str, Any]:
        """The scalars of row i in a column."""
        shard, row = self.locate(i)
        return self.dataset.reader(column, shard).scalars(row)

    def _place(self, i: int) -> tuple[int, int]:
        """(shard, place among the view's rows of the shard) of row i."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a view with {len(self)} rows")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, i - (int(self._ends[shard - 1]) if shard else 0)

    def rows_of(self, shard: int) -> np.ndarray:
        """Rows of the shard that belong to the view, ascending."""
        if shard not in self._rows:
            self._rows[shard] = self.source.rows(shard)
        self._rows.move_to_end(shard)
        while len(self._rows) > ROW_LISTS:
            self._rows.popitem(last=False)
        return self._rows[shard]


def _image_size(recipe: dict[str, Any]) -> tuple[int, int] | None:
    """As Recipe.image_size, for a resolved recipe that has lost its root."""
    image, source = recipe["image"], recipe["source"]
    size = image["size"] if image["resize"] in ("crop", "letterbox") else source.get("size")
    return tuple(size) if size and image["resize"] != "fit" else None
