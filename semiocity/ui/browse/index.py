"""One file for all rows of a dataset: what the shards' parquets say, ready to be searched, filtered and sorted.

`build` streams the shards' indexes into two Arrow files that are memory-mapped afterwards, so that the first page needs
no reading and several browsers share one copy:

    rows.arrow     a line a row in the order of shard and key: shard, row, key, COLUMN.tombstone, COLUMN.reason,
                   COLUMN.FIELD.length and .ext, COLUMN.SCALAR, ~search (lower case: the key and every text),
                   ~share.N (of class N, see Options)
    facets.arrow   small numbers for counting: ~code.NAME (which of a scalar's few values), ~bin.NAME (which bar of a
                   histogram), ~has.N (whether class N occurs)
    facts.json     the values, the ends of the histograms, counts over all rows

Names that begin with ~ are ours: no scalar can have them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semiocity.data import filter as filters
from semiocity.data.columns import Dataset
from semiocity.data.filter import Filter
from semiocity.data.layout import gallery_state
from semiocity.data.manifest import BASE
from semiocity.errors import UserError
from semiocity.files import digest, read_json
from semiocity.ui.browse.chosen import Views

VERSION = 1
"""Raised when the files hold something else for the same dataset."""
BATCH_ROWS = 65_536
"""Rows of a record batch; row i lies in batch i // BATCH_ROWS."""
NOTHING = 255
"""The bin of rows without a value."""
ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


@dataclass(frozen=True)
class Options:
    """What goes into an index."""

    shards: tuple[int, int] | None = None
    """First shard and the one after the last; None for all."""
    contents: bool = False
    """Also open the tars: for the texts, and for shares of classes where no stage has measured them."""


def key_of(dataset: Dataset, options: Options) -> str:
    """What names an index: changes with the dataset's columns, the options and VERSION."""
    return f"{gallery_state(dataset.facts)}-{digest([VERSION, asdict(options)], 6)}"


def chosen_shards(dataset: Dataset, options: Options) -> range:
    """The shards that the options name. Raises UserError when there are none such."""
    first, end = options.shards or (0, dataset.shards)
    if not 0 <= first < end <= dataset.shards:
        raise UserError(f"{dataset.path}: shards {first}:{end}: there are 0:{dataset.shards}")
    return range(first, end)


def map_file(path: Path) -> pa.Table:
    """The table in an Arrow file, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()


class Index:
    """An index on disk, memory-mapped. Opening reads facts.json only."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when the folder holds no index of this VERSION."""
        self.folder = folder
        try:
            facts = read_json(folder / "facts.json")
            self.table = map_file(folder / "rows.arrow")
            self._facets = map_file(folder / "facets.arrow")
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{folder}: no index of a gallery ({error}); remove the folder") from None
        if facts.get("version") != VERSION or facts["rows"] != len(self.table):
            raise UserError(f"{folder}: damaged or made by another version; remove the folder")
        self.choices: dict[str, list[Any]] = facts["choices"]
        self.ranges: dict[str, dict[str, Any]] = facts["ranges"]
        self.classes: dict[int, str] = {int(i): source for i, source in facts["classes"].items()}
        self.texts: list[str] = facts["texts"]
        self.views: Views | None = None
        """The dataset's saved views, once somebody shows the index with its dataset."""
        self._batches = self.table.to_batches()
        self.scalars, self.tables = _by_column(self.table)
        """What filter expressions may name: column → scalar → kind; and the same as tables."""

    def __len__(self) -> int:
        return len(self.table)

    def filter(self, text: str) -> Filter:
        """A filter expression over the index's columns. Raises FilterError."""
        return filters.parse(text, self.scalars, "where")

    def codes(self, name: str) -> np.ndarray:
        """Which of `choices[name]` each row has, int8 [rows]; -1 for none."""
        return self._facets[f"~code.{name}"].to_numpy()

    def bins(self, name: str) -> np.ndarray:
        """Which bar of a range's histogram each row belongs to, uint8 [rows]; NOTHING for none."""
        return self._facets[f"~bin.{name}"].to_numpy()

    def has(self, class_id: int) -> np.ndarray:
        """Whether a class occurs, uint8 [rows] of 0 and 1."""
        return self._facets[f"~has.{class_id}"].to_numpy()

    def read(self, row: int, names: list[str]) -> dict[str, Any]:
        """Values of one row."""
        batch, place = divmod(row, BATCH_ROWS)
        return {name: self._batches[batch].column(name)[place].as_py() for name in names}

    def find(self, key: str) -> int | None:
        """The row with a key."""
        found = pc.index(self.table["key"], pa.scalar(key)).as_py()
        return None if found < 0 else found


_KINDS = {kind: name for name, kind in ARROW.items()}


def _by_column(table: pa.Table) -> tuple[dict[str, dict[str, str]], dict[str, pa.Table]]:
    scalars: dict[str, dict[str, str]] = {BASE: {"key": "str"}}
    arrays: dict[str, dict[str, Any]] = {BASE: {"key": table["key"]}}
    for field in table.schema:
        column, dot, name = field.name.partition(".")
        if dot and not column.startswith("~"):
            scalars.setdefault(column, {})[name] = _KINDS[field.type]
            arrays.setdefault(column, {})[name] = table[field.name]
    return scalars, {column: pa.table(found) for column, found in arrays.items()}


def readable(value: Any) -> Any:
    """A value as JSON can say it: what is no finite number becomes text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
