"""What an export holds: named fields and scalars of a view, shard by shard and row by row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from semiocity.config import digest
from semiocity.data.columns import Dataset, View
from semiocity.data.images import decode_ids
from semiocity.data.manifest import BASE
from semiocity.data.recipe import LARGEST_IMAGE
from semiocity.errors import UserError

IMAGES = ("jpg", "png")
TEXTS = ("txt", "json")
SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


ALL = "all"
"""Split of rows that have none, and of tars that hold the rows of several."""
UNSPLIT = "none"
"""Split of a row whose split is not known, where the others have one."""


class Payload(NamedTuple):
    """A field of a row: the member's extension in our tars, such as label.png, and its bytes."""

    ext: str
    data: bytes


class Selected(NamedTuple):
    """One exported row. `values` are by export name: Payload for fields, plain values for scalars, None for nothing."""

    number: int
    """The row's place in the whole export, from 0."""
    place: int
    """The row's place in its shard."""
    key: str
    split: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Which rows go out."""

    split: str | None = None
    filter: str | None = None
    """An expression over scalars (docs/filters.md)."""
    view: str | None = None
    """A saved view, NAME or NAME@REVISION (docs/views.md)."""


class Selection:
    """The rows and fields of an export.

    `fields` are export name → COLUMN.FIELD or COLUMN.SCALAR. Rows that failed in any of their columns are left out, or
    what a saved view says of them. Raises UserError for fields, splits, filters and views that do not exist.
    """

    def __init__(self, dataset: Dataset, fields: dict[str, str], rows: Rows) -> None:
        self.fields = fields
        self.chosen = rows
        self.view = rows_of(dataset, sorted({*fields.values()}), rows)
        self.dataset = self.view.dataset
        """With the column revisions that a saved view pins."""
        self.columns = sorted({*self.view.selection.columns, *map(_column, fields.values())})

    def with_fields(self, fields: dict[str, str]) -> Selection:
        """The same choice of rows with other fields."""
        return Selection(self.dataset, fields, self.chosen)

    @cached_property
    def starts(self) -> list[int]:
        """Number of each shard's first row, and the total at the end."""
        return [0, *accumulate(map(int, self.view.shard_sizes))]

    @property
    def shards(self) -> int:
        return len(self.starts) - 1

    def rows(self, shard: int) -> Iterator[Selected]:
        """The rows of one shard with their payloads; every crc32 is checked. Raises ShardError."""
        keys, splits = self.dataset.reader(BASE, shard).keys, self.splits_of(shard)
        for number, place in enumerate(self.places(shard), start=self.starts[shard]):
            values = {name: self._value(shard, place, reference) for name, reference in self.fields.items()}
            yield Selected(number, place, keys[place], splits[place], values)

    def places(self, shard: int) -> list[int]:
        """The exported rows of a shard by their places in it, ascending."""
        return [int(place) for place in self.view.rows_of(shard)]

    def splits_of(self, shard: int) -> list[str]:
        """The split of each row of a shard, exported or not. Raises UserError when one cannot name a folder."""
        by = self.view.selection.split_by
        if by is None:
            return [ALL] * len(self.dataset.reader(BASE, shard))
        column, _, scalar = by.partition(".")
        splits = [split or UNSPLIT for split in self.dataset.reader(column, shard).column(scalar)]
        for split in set(splits):
            if not SPLIT_NAME.fullmatch(split):
                raise UserError(f"{self.dataset.path}: split {split!r} cannot name a folder")
        return splits

    def is_field(self, name: str) -> bool:
        """Whether an export name stands for a field (bytes), not a scalar."""
        column, _, field = self.fields[name].partition(".")
        return field in self.dataset.columns[column].fields

    def extensions(self, name: str) -> list[str]:
        """Extensions that the members of a field may have in our tars."""
        column, _, field = self.fields[name].partition(".")
        return self.dataset.columns[column].fields[field].split("|")

    def kind(self, name: str) -> str:
        """`image`, `text` or `binary` for a field; int, float, str or bool for a scalar."""
        if not self.is_field(name):
            column, _, scalar = self.fields[name].partition(".")
            return self.dataset.columns[column].scalars[scalar]
        last = {ext.rpartition(".")[2] for ext in self.extensions(name)}
        return "image" if last <= set(IMAGES) else "text" if last <= set(TEXTS) else "binary"

    def first(self, *references: str) -> str | None:
        """The export name of the first of `references` that is selected."""
        names = {reference: name for name, reference in self.fields.items()}
        return next((names[reference] for reference in references if reference in names), None)

    def counts(self, shard: int) -> dict[str, Any]:
        """{"rows": {split: n}, "tombstones": {column: rows that failed}, "licenses": {licence: rows}}.

        Rows that failed are those of the wanted split, whether or not a filter would have let them through; those that
        were taken down are no rows any more.
        """
        base, splits, rows = self.dataset.reader(BASE, shard), self.splits_of(shard), self.places(shard)
        licenses = base.column("license") if self.dataset.has(f"{BASE}.license") else [None] * len(base)
        dead = {}
        for column in self.columns:
            if any(self.dataset.shard_entries(column)[shard]["tombstones"].values()):
                kinds = self.dataset.reader(column, shard).column("tombstone")
                wanted = (None, *splits) if self.chosen.split is None else (self.chosen.split,)
                dead[column] = sum(
                    k not in (None, "removed") and s in wanted for k, s in zip(kinds, splits, strict=True)
                )
        return {
            "rows": dict(sorted(Counter(splits[row] for row in rows).items())),
            "tombstones": dead,
            "licenses": dict(sorted(Counter(licenses[row] or "" for row in rows).items())),
        }

    def input_digest(self, shard: int) -> str:
        """Changes with the bytes and scalars of the shard's columns, with the rows chosen, and with their numbers."""
        entries = {column: self.dataset.shard_entries(column)[shard] for column in self.columns}
        chosen = self.chosen.filter is not None or self.chosen.view is not None
        return digest(
            {
                "shards": {name: [entry["sha256"], entry["parquet_sha256"]] for name, entry in entries.items()},
                "fields": self.fields,
                "split": self.chosen.split,
                "rows": [self.starts[shard], self.starts[shard + 1]],
                "places": self.places(shard) if chosen else None,
            },
            32,
        )

    def _value(self, shard: int, place: int, reference: str) -> Any:
        column, _, name = reference.partition(".")
        reader = self.dataset.reader(column, shard)
        if name not in self.dataset.columns[column].fields:
            return reader.scalar(place, name)
        data = reader.read(place, name)
        return None if data is None else Payload(reader.column(f"{name}.ext")[place], data)


def rows_of(dataset: Dataset, fields: Sequence[str], rows: Rows) -> View:
    """The rows that an export reads: the one place where rows are chosen."""
    if rows.view is None:
        return dataset.view(fields, rows.split, rows.filter)
    if rows.filter is not None:
        raise UserError("--filter and --view: a saved view has its own filter; give one of the two")
    view = dataset.saved_view(rows.view, rows.split)
    view.dataset.require(fields)
    return view


def parse_fields(dataset: Dataset, words: Sequence[str]) -> dict[str, str]:
    """Export name → COLUMN.FIELD from words such as `base.image`, `text=caption.text`, or `base` for a whole column.

    Without a name of its own a field of base is called as it is, any other COLUMN_FIELD. Raises UserError.
    """
    fields: dict[str, str] = {}
    for word in words:
        name, equals, reference = word.rpartition("=")
        if equals and not NAME.fullmatch(name):
            raise UserError(f"--fields {word}: {name!r} cannot be a name; expected NAME=COLUMN.FIELD")
        for one in [reference] if "." in reference else _whole(dataset, reference, word):
            dataset.require([one])
            called = name or default_name(one)
            if called == "key" or called in fields:
                raise UserError(
                    f"--fields {word}: the name {called} is taken by {fields.get(called, 'the key of the row')}; "
                    f"give it another, such as other_{called}={one}"
                )
            fields[called] = one
    return fields


def map_ids(data: bytes, bits: int = 8) -> np.ndarray:
    """A label (8 bits) or instance map (16) of base as [H, W]; packing has looked at it already."""
    return decode_ids(data, "label" if bits == 8 else "instance", bits, LARGEST_IMAGE)


def default_name(reference: str) -> str:
    """What a field is called in an export unless its user says otherwise."""
    column, _, field = reference.partition(".")
    return (field if column == BASE else f"{column}_{field}").replace(".", "_")


def _column(reference: str) -> str:
    return reference.partition(".")[0]


def _whole(dataset: Dataset, column: str, word: str) -> list[str]:
    if "=" in word:
        raise UserError(f"--fields {word}: a whole column cannot be named anew; expected NAME=COLUMN.FIELD")
    found = dataset.column(column)
    # Several scalars repeat a field's name (the text of a caption, say): the field is the whole of it.
    return [f"{column}.{name}" for name in [*found.fields, *(s for s in found.scalars if s not in found.fields)]]
