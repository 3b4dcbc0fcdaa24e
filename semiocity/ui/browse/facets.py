"""What an index counts by: texts with few values, histograms of numbers, classes of label maps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semiocity.data.columns import Dataset
from semiocity.data.shard import KINDS
from semiocity.stages.caption import share_names
from semiocity.ui.browse.index import NOTHING, VERSION, Options

CHOICES = 64
"""A text with at most so many different values is a choice, …"""
CHOICE_LENGTH = 48
"""… when none is longer than this, and each is shared by two rows on average."""
BINS = 40
"""Bars of a histogram."""


def scalars_of(dataset: Dataset, *kinds: str) -> list[str]:
    """COLUMN.SCALAR of every scalar of these kinds."""
    return [f"{c.name}.{name}" for c in dataset.columns.values() for name, kind in c.scalars.items() if kind in kinds]


class Choices:
    """Finds out, batch by batch, which texts have few values. Memory stays flat: who has many is dropped."""

    def __init__(self, names: list[str]) -> None:
        self._counters: dict[str, Counter[Any]] = {name: Counter() for name in names}

    def see(self, batch: pa.RecordBatch) -> None:
        """Count a batch's values."""
        for name, counter in list(self._counters.items()):
            for item in pc.value_counts(batch.column(name)).to_pylist():
                value = item["values"]
                counter[value] += item["counts"]
                if len(counter) > CHOICES + 1 or (isinstance(value, str) and len(value) > CHOICE_LENGTH):
                    del self._counters[name]
                    break

    def found(self) -> dict[str, list[Any]]:
        """Name → values, most frequent first."""
        choices = {}
        for name, counter in self._counters.items():
            known = [value for value in counter if value is not None]
            if set(known) <= {True, False} or (len(known) <= CHOICES and 2 * len(known) <= counter.total()):
                choices[name] = sorted(known, key=lambda value: (-counter[value], str(value)))
        return choices


def write_facets(
    dataset: Dataset, table: pa.Table, path: Path, choices: dict[str, list[Any]], options: Options
) -> dict[str, Any]:
    """Write facets.arrow over the rows of `table`; returns what facts.json says."""
    small: dict[str, np.ndarray] = {}
    for column in dataset.columns.values():
        if any(column.tombstones.values()):
            choices[f"{column.name}.tombstone"] = [kind for kind in KINDS if column.tombstones.get(kind)]
    for name, values in choices.items():
        codes = pc.index_in(table[name], value_set=pa.array(values, table[name].type))
        small[f"~code.{name}"] = pc.fill_null(codes, -1).to_numpy().astype(np.int8)
    ranges: dict[str, Any] = {}
    classes = class_columns(dataset, options)
    for name in scalars_of(dataset, "int", "float"):
        if name in classes.values():
            continue
        ranges[name], small[f"~bin.{name}"] = _histogram(table[name])
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
        "texts": [name for name in scalars_of(dataset, "str", "bool") if name not in choices],
    }


def class_columns(dataset: Dataset, options: Options) -> dict[int, str]:
    """Class id → the column of rows.arrow that holds its share of the picture: what a stage measured, such as
    caption.share.road, else what label maps showed. Empty when nobody has looked."""
    shares = share_names([spec.name for spec in dataset.classes])
    for column in dataset.columns.values():
        if shares and all(column.scalars.get(name) == "float" for name in shares):
            return {i: f"{column.name}.{name}" for i, name in enumerate(shares)}
    return {i: f"~share.{i}" for i in range(len(shares))} if options.contents else {}


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
