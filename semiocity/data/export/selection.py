"""What an export holds: named fields and scalars of a view, shard by shard and row by row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
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


class Selection:
    """The rows and fields of an export.

    `fields` are export name → COLUMN.FIELD or COLUMN.SCALAR. Rows that failed in any of their columns are left out.
    Raises UserError for fields and splits that do not exist.
    """

    def __init__(self, dataset: Dataset, fields: dict[str, str], split: str | None = None) -> None:
        self.dataset = dataset
        self.fields = fields
        self.split = split
        self.view = rows_of(dataset, sorted({*fields.values(), f"{BASE}.split"}), split)
        self.columns = sorted({reference.partition(".")[0] for reference in fields.values()} | {BASE})
        for name in dataset.splits:
            if not SPLIT_NAME.fullmatch(name):
                raise UserError(f"{dataset.path}: split {name!r} cannot name a folder; pack with another name")

    @cached_property
    def starts(self) -> list[int]:
        """Number of each shard's first row, and the total at the end."""
        return [0, *accumulate(self.view.shard_sizes)]

    @property
    def shards(self) -> int:
        return self.dataset.shards

    def rows(self, shard: int) -> Iterator[Selected]:
        """The rows of one shard with their payloads; every crc32 is checked. Raises ShardError."""
        for number in range(self.starts[shard], self.starts[shard + 1]):
            _, row = self.view.locate(number)
            found = self.view.read(number)
            values = {name: self._value(shard, row, reference, found) for name, reference in self.fields.items()}
            yield Selected(number, row, self.view.key(number), found[f"{BASE}.split"], values)

    def places(self, shard: int) -> list[int]:
        """The exported rows of a shard by their places in it, ascending."""
        return [self.view.locate(number)[1] for number in range(self.starts[shard], self.starts[shard + 1])]

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
        """{"rows": {split: n}, "tombstones": {column: rows left out for it}, "licenses": {licence: rows}}."""
        base = self.dataset.reader(BASE, shard)
        splits = base.column("split")
        rows = self.places(shard)
        licenses = base.column("license") if self.dataset.has(f"{BASE}.license") else [None] * len(base)
        dead = {}
        for column in self.columns:
            if any(self.dataset.shard_entries(column)[shard]["tombstones"].values()):
                kinds = self.dataset.reader(column, shard).column("tombstone")
                dead[column] = sum(
                    kind is not None and self.split in (None, split) for kind, split in zip(kinds, splits, strict=True)
                )
        return {
            "rows": dict(sorted(Counter(splits[row] for row in rows).items())),
            "tombstones": dead,
            "licenses": dict(sorted(Counter(licenses[row] or "" for row in rows).items())),
        }

    def input_digest(self, shard: int) -> str:
        """Changes with the bytes and scalars of the shard's columns, with the rows chosen, and with their numbers."""
        entries = {column: self.dataset.shard_entries(column)[shard] for column in self.columns}
        return digest(
            {
                "shards": {name: [entry["sha256"], entry["parquet_sha256"]] for name, entry in entries.items()},
                "fields": self.fields,
                "split": self.split,
                "rows": [self.starts[shard], self.starts[shard + 1]],
            },
            32,
        )

    def _value(self, shard: int, row: int, reference: str, found: dict[str, Any]) -> Any:
        value = found[reference]
        column, _, field = reference.partition(".")
        if value is None or field not in self.dataset.columns[column].fields:
            return value
        return Payload(self.dataset.reader(column, shard).column(f"{field}.ext")[row], value)


def rows_of(dataset: Dataset, fields: Sequence[str], split: str | None) -> View:
    """The rows that an export reads: the one place where rows are chosen."""
    return dataset.view(fields, split)


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


def _whole(dataset: Dataset, column: str, word: str) -> list[str]:
    if "=" in word:
        raise UserError(f"--fields {word}: a whole column cannot be named anew; expected NAME=COLUMN.FIELD")
    found = dataset.column(column)
    # Several scalars repeat a field's name (the text of a caption, say): the field is the whole of it.
    return [f"{column}.{name}" for name in [*found.fields, *(s for s in found.scalars if s not in found.fields)]]
