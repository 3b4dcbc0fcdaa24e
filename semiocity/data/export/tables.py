"""Rows as Arrow tables that `datasets` and the Hub understand: pictures as Image features, classes as ClassLabel."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from semiocity.data.columns import Dataset
from semiocity.data.export.base import Exporter, Options, Written
from semiocity.data.export.selection import Payload, Selected, Selection, map_ids
from semiocity.data.manifest import BASE
from semiocity.errors import UserError

BATCH_BYTES = 64 * 10**6
"""Payload bytes in one record batch or row group: what an export holds in memory at a time."""
BATCH_ROWS = 1000
CLASSES = "classes"

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_ARROW = {
    "image": _IMAGE,
    "text": pa.string(),
    "binary": pa.binary(),
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
    "bool": pa.bool_(),
}
_FEATURE = {
    "image": {"_type": "Image"},
    "text": {"dtype": "string", "_type": "Value"},
    "binary": {"dtype": "binary", "_type": "Value"},
    "int": {"dtype": "int64", "_type": "Value"},
    "float": {"dtype": "float64", "_type": "Value"},
    "str": {"dtype": "string", "_type": "Value"},
    "bool": {"dtype": "bool", "_type": "Value"},
}


class Table:
    """How the rows of a selection become rows of a table.

    Columns: `key`; each field and scalar under its export name; and, where label maps are exported, `classes`: which
    classes are in the picture. Raises UserError when a name is taken.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._kinds = {name: selection.kind(name) for name in selection.fields}
        self._label = selection.first(f"{BASE}.label") if selection.dataset.classes else None
        if self._label is not None and CLASSES in self._kinds:
            raise UserError(f"--fields: the name {CLASSES} is taken by the classes of the label map; give another")
        self._names = [spec.name for spec in selection.dataset.classes]
        self.schema = self._schema()
        self.repeating = [name for name, kind in self._kinds.items() if kind in ("int", "str", "bool")]
        """Columns whose values come again and again."""

    def batches(self, shard: int) -> Iterator[tuple[str, pa.RecordBatch]]:
        """(split, record batch) of a shard's rows, split by split in the order of keys."""
        waiting: dict[str, list[dict[str, Any]]] = {}
        sizes: dict[str, int] = {}
        for row in self._selection.rows(shard):
            rows = waiting.setdefault(row.split, [])
            rows.append(self._row(row))
            size = sum(len(value.data) for value in row.values.values() if isinstance(value, Payload))
            sizes[row.split] = sizes.get(row.split, 0) + size
            if sizes[row.split] >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                yield row.split, pa.RecordBatch.from_pylist(rows, schema=self.schema)
                waiting[row.split], sizes[row.split] = [], 0
        for split, rows in waiting.items():
            if rows:
                yield split, pa.RecordBatch.from_pylist(rows, schema=self.schema)

    def features(self) -> dict[str, Any]:
        """The features as `datasets` writes them into dataset_info.json and into Arrow's metadata."""
        features: dict[str, Any] = {"key": _FEATURE["str"]}
        features |= {name: _FEATURE[kind] for name, kind in self._kinds.items()}
        if self._label is not None:
            label = {"names": self._names, "_type": "ClassLabel"}
            features[CLASSES] = {"feature": label, "_type": "Sequence"}  # versions below 4 know no other name for it
        return features

    def _schema(self) -> pa.Schema:
        fields = [pa.field("key", pa.string()), *(pa.field(name, _ARROW[kind]) for name, kind in self._kinds.items())]
        if self._label is not None:
            fields.append(pa.field(CLASSES, pa.list_(pa.int64())))
        info = {"info": {"features": self.features()}}
        return pa.schema(fields, metadata={"huggingface": json.dumps(info)})

    def _row(self, row: Selected) -> dict[str, Any]:
        made: dict[str, Any] = {"key": row.key}
        for name, value in row.values.items():
            made[name] = self._cell(row.key, self._kinds[name], value) if isinstance(value, Payload) else value
        if self._label is not None:
            made[CLASSES] = self._present(row.values[self._label])
        return made

    def _cell(self, key: str, kind: str, value: Payload) -> Any:
        match kind:
            case "image":
                return {"bytes": value.data, "path": f"{key}.{value.ext}"}
            case "text":
                return value.data.decode()
        return value.data

    def _present(self, label: Payload | None) -> list[int] | None:
        if label is None:
            return None
        return [int(number) for number in np.unique(map_ids(label.data)) if number < len(self._names)]


class TableExporter(Exporter):
    """What the formats share that are tables: one file a shard and split."""

    def __init__(self, selection: Selection, options: Options) -> None:
        super().__init__(selection, options)
        self._table = Table(selection)

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        """Every column, whole."""
        return list(dataset.columns)

    def write(self, shard: int, folder: Path) -> Written:
        writers: dict[str, Any] = {}
        with ExitStack() as open_files:
            for split, batch in self._table.batches(shard):
                if split not in writers:
                    path = folder / self._path(split, shard)
                    path.parent.mkdir(exist_ok=True)
                    writers[split] = open_files.enter_context(self._open(path))
                writers[split].write_batch(batch)
        return Written([self._path(split, shard) for split in sorted(writers)])

    @abstractmethod
    def _open(self, path: Path) -> AbstractContextManager[Any]:
        """A writer of record batches: `write_batch`."""

    @abstractmethod
    def _path(self, split: str, shard: int) -> str:
        """Relative to the export."""
