"""One file for all rows of a dataset: what the shards' parquets say, ready to be searched, filtered and sorted.

`build` streams the shards' indexes into two Arrow files that are memory-mapped afterwards, so that the first page needs
no reading and several browsers share one copy:

    rows.arrow     a line a row in the order of shard and key: shard, row, key, COLUMN.tombstone, COLUMN.reason,
                   COLUMN.SCALAR, ~search (lower case: the key and every text), ~share.N (of class N, see Options)
    facets.arrow   small numbers for counting: ~code.NAME (which of a scalar's few values), ~bin.NAME (which bar of a
                   histogram), ~has.N (whether class N occurs)
    facts.json     the values, the ends of the histograms, counts over all rows

Names that begin with ~ are ours: no scalar can have them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.data.columns import Column, Dataset
from semiocity.data.manifest import BASE, ShardPath
from semiocity.data.shard import ShardError
from semiocity.errors import UserError
from semiocity.files import digest, fsync_folder, read_json, write_json
from semiocity.ui.browse import contents

VERSION = 1
"""Raised when the files hold something else for the same dataset."""
BATCH_ROWS = 65_536
"""Rows of a record batch; row i lies in batch i // BATCH_ROWS."""
TOGETHER = 16
"""Shards read at the same time."""
CHOICES = 64
"""A text with at most so many different values is a choice, …"""
CHOICE_LENGTH = 48
"""… when none is longer than this, and each is shared by two rows on average."""
BINS = 40
"""Bars of a histogram."""
NOTHING = 255
"""The bin of rows without a value."""
NUMBERS = ("int", "float")

Report = Callable[[int, int], None]
"""Called with shards done and shards in all."""


@dataclass(frozen=True)
class Options:
    """What goes into an index."""

    shards: tuple[int, int] | None = None
    """First shard and the one after the last; None for all."""
    contents: bool = False
    """Also open the tars: shares of classes from base.label, and the texts that are no scalars."""


class Stopped(Exception):
    """The builder was told to stop."""


def key_of(dataset: Dataset, options: Options) -> str:
    """What names an index: changes with the dataset's columns, the options and VERSION."""
    columns = {name: [column.revision, column.digest] for name, column in dataset.columns.items()}
    classes = [spec.name for spec in dataset.classes]
    return f"{digest([columns, classes])}-{digest([VERSION, asdict(options)], 6)}"


def chosen_shards(dataset: Dataset, options: Options) -> range:
    """The shards that the options name. Raises UserError when there are none such."""
    first, end = options.shards or (0, dataset.shards)
    if not 0 <= first < end <= dataset.shards:
        raise UserError(f"{dataset.path}: shards {first}:{end}: there are 0:{dataset.shards}")
    return range(first, end)


# ---------------------------------------------------------------- building


def build(dataset: Dataset, folder: Path, options: Options, report: Report, stop: Callable[[], bool]) -> None:
    """Write the index files into `folder`, which the caller made and will rename. Memory stays flat.

    Raises UserError when a shard's index is missing or damaged, Stopped when `stop` says so.
    """
    schema = _schema(dataset, options)
    shards = chosen_shards(dataset, options)
    counters: dict[str, Counter[Any] | None] = {name: Counter() for name in _texts(dataset)}
    sink = folder / "rows.arrow"
    with sink.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in _batches(_tables(dataset, shards, options, schema, report, stop), schema):
            for name, counter in counters.items():
                if counter is not None and not _count(batch.column(name), counter):
                    counters[name] = None
            writer.write_batch(batch)
    table = _map(sink)
    choices = {name: _values(counter) for name, counter in counters.items() if _is_choice(counter)}
    facts = _facets(dataset, table, folder / "facets.arrow", choices, options)
    for name in ("rows.arrow", "facets.arrow"):
        _sync(folder / name)
    write_json(folder / "facts.json", facts)
    fsync_folder(folder)


def _texts(dataset: Dataset) -> list[str]:
    return [
        f"{c.name}.{s}" for c in dataset.columns.values() for s, kind in c.scalars.items() if kind in ("str", "bool")
    ]


def _numbers(dataset: Dataset) -> list[str]:
    return [f"{c.name}.{s}" for c in dataset.columns.values() for s, kind in c.scalars.items() if kind in NUMBERS]


_ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


def _schema(dataset: Dataset, options: Options) -> pa.Schema:
    fields = [("shard", pa.int32()), ("row", pa.int32()), ("key", pa.string())]
    for column in dataset.columns.values():
        fields += [(f"{column.name}.tombstone", pa.string()), (f"{column.name}.reason", pa.string())]
        fields += [(f"{column.name}.{name}", _ARROW[kind]) for name, kind in column.scalars.items()]
    fields.append(("~search", pa.string()))
    if options.contents:
        fields += [(f"~share.{i}", pa.float32()) for i in range(len(dataset.classes))]
    return pa.schema(fields)


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
    found: dict[str, Any] = {}
    keys: pa.ChunkedArray | None = None
    for column in dataset.columns.values():
        table = _read(dataset, column, shard)
        keys = table["key"] if keys is None else keys
        if not table["key"].equals(keys):
            raise ShardError(
                f"{ShardPath(column.folder, shard).parquet}: its keys are not those of the column {BASE}. "
                f"`semiocity verify {dataset.path}` tells more"
            )
        for name in ("tombstone", "reason", *column.scalars):
            found[f"{column.name}.{name}"] = table[name]
    assert keys is not None
    rows = len(keys)
    texts = [keys, *(found[name] for name in _texts(dataset) if found[name].type == pa.string())]
    if options.contents:
        seen = contents.read(dataset, shard, rows)
        found |= {f"~share.{i}": pa.array(seen.shares[:, i]) for i in range(len(dataset.classes))}
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


def _read(dataset: Dataset, column: Column, shard: int) -> pa.Table:
    path = ShardPath(column.folder, shard).parquet
    names = ["key", "tombstone", "reason", *column.scalars]
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


def _count(values: pa.Array, counter: Counter[Any]) -> bool:
    """Add up different values; False as soon as they are too many or too long for a choice."""
    for item in pc.value_counts(values).to_pylist():
        value = item["values"]
        counter[value] += item["counts"]
        if len(counter) > CHOICES + 1 or (isinstance(value, str) and len(value) > CHOICE_LENGTH):
            return False
    return True


def _is_choice(counter: Counter[Any] | None) -> bool:
    if counter is None:
        return False
    known = {value for value in counter if value is not None}
    rows = sum(counter.values())
    return len(known) <= CHOICES and (known <= {True, False} or 2 * len(known) <= rows)


def _values(counter: Counter[Any] | None) -> list[Any]:
    """The values of a choice, most frequent first."""
    assert counter is not None
    return [v for v, _ in sorted(counter.items(), key=lambda item: (-item[1], str(item[0]))) if v is not None]


# ---------------------------------------------------------------- facets


def _facets(
    dataset: Dataset, table: pa.Table, path: Path, choices: dict[str, list[Any]], options: Options
) -> dict[str, Any]:
    """Write facets.arrow; returns what facts.json says."""
    small: dict[str, np.ndarray] = {}
    for column in dataset.columns.values():
        if any(column.tombstones.values()):
            choices[f"{column.name}.tombstone"] = ["permanent", "retry"]
    for name, values in choices.items():
        codes = pc.index_in(table[name], value_set=pa.array(values, table[name].type))
        small[f"~code.{name}"] = pc.fill_null(codes, -1).to_numpy().astype(np.int8)
    ranges: dict[str, Any] = {}
    for name in _numbers(dataset):
        ranges[name], small[f"~bin.{name}"] = _histogram(table[name])
    classes = _class_columns(dataset, options)
    for i, source in classes.items():
        small[f"~has.{i}"] = pc.fill_null(pc.greater(table[source], 0), False).to_numpy().astype(np.uint8)
    with path.open("wb") as file:
        facets = pa.table(small) if small else pa.table({"~none": np.zeros(len(table), np.uint8)})
        with pa.ipc.new_file(file, facets.schema) as writer:
            writer.write_table(facets.combine_chunks())
    return {
        "version": VERSION,
        "rows": len(table),
        "choices": choices,
        "ranges": ranges,
        "classes": {str(i): source for i, source in classes.items()},
        "texts": [name for name in _texts(dataset) if name not in choices],
    }


def _class_columns(dataset: Dataset, options: Options) -> dict[int, str]:
    """Class id → the column of rows.arrow that holds its share of the picture."""
    return {i: f"~share.{i}" for i in range(len(dataset.classes))} if options.contents else {}


def _histogram(values: pa.ChunkedArray) -> tuple[dict[str, Any], np.ndarray]:
    """Ends, number of bars, and the bar of each row. Bars of integers are as wide as integers where these are few."""
    found = pc.fill_null(values, 0).to_numpy()
    finite = np.isfinite(found) & pc.is_valid(values).to_numpy()
    bins = np.full(len(found), NOTHING, np.uint8)
    if not finite.any():
        return {"low": None, "high": None, "bins": 0, "missing": len(found)}, bins
    whole = pa.types.is_integer(values.type)
    known = found[finite].astype(np.float64)
    low, high = float(known.min()), float(known.max())
    end = high + 1 if whole and high - low < BINS else high
    count = int(end - low) if whole and high - low < BINS else (BINS if high > low else 1)
    place = (known - low) * (count / (end - low)) if end > low else np.zeros(len(known))
    bins[finite] = np.minimum(place.astype(np.int64), count - 1)
    facts = {
        "low": int(low) if whole else low,
        "high": int(high) if whole else high,
        "end": end,
        "bins": count,
        "missing": int((~finite).sum()),
    }
    return facts, bins


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- reading


class Index:
    """An index on disk, memory-mapped. Opening reads facts.json only."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when the folder holds no index of this VERSION."""
        self.folder = folder
        try:
            facts = read_json(folder / "facts.json")
            self.table = _map(folder / "rows.arrow")
            self._facets = _map(folder / "facets.arrow")
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{folder}: no index of a gallery ({error}); remove the folder") from None
        if facts.get("version") != VERSION or facts["rows"] != len(self.table):
            raise UserError(f"{folder}: damaged or made by another version; remove the folder")
        self.choices: dict[str, list[Any]] = facts["choices"]
        self.ranges: dict[str, dict[str, Any]] = facts["ranges"]
        self.classes: dict[int, str] = {int(i): source for i, source in facts["classes"].items()}
        self.texts: list[str] = facts["texts"]
        self._batches = self.table.to_batches()

    def __len__(self) -> int:
        return len(self.table)

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


def readable(value: Any) -> Any:
    """A value as JSON can say it: what is no finite number becomes text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
