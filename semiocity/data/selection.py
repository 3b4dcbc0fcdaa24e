"""Which rows a view has: fields, split, filter, and what becomes of rows that failed. Login-node code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from semiocity.config import digest
from semiocity.data import filter as filters
from semiocity.data.buckets import BucketOptions
from semiocity.data.filter import Filter
from semiocity.data.manifest import BASE, TO_CATCH_UP, behind, require
from semiocity.errors import UserError

Policy = Literal["error", "skip", "none"]
"""When a row is a tombstone in a column, or lacks a field that the view reads there: refuse the view, leave the row
out, or give None. A column without a policy leaves tombstones out and gives None for what is lacking."""

SPLIT = "base.split"
WIDTH, HEIGHT = "base.width", "base.height"


@dataclass(frozen=True)
class Selection:
    """A rule for choosing rows."""

    fields: tuple[str, ...]
    """What is read of each row: COLUMN.FIELD or COLUMN.SCALAR."""
    split: str | None = None
    """Rows of this split; None takes all."""
    split_by: str | None = SPLIT
    """The scalar that says which split a row belongs to."""
    filter: Filter | None = None
    join: Mapping[str, Policy] = field(default_factory=dict)
    """Column → policy."""
    buckets: BucketOptions | None = None

    @property
    def joined(self) -> list[str]:
        """Columns whose failed rows matter: base and those that fields are read from."""
        return sorted({column_of(name) for name in self.fields} | {BASE})

    @property
    def columns(self) -> list[str]:
        """Every column that is looked at."""
        named = {BASE, *self.joined, *(self.filter.reads if self.filter else ()), *self.join}
        if self.split_by is not None and self.split_by != SPLIT:
            named.add(column_of(self.split_by))
        return sorted(named)

    def identity(self, column_digests: Mapping[str, str]) -> str:
        """64 hex digits, equal for selections of the same rows with the same bytes in the same order."""
        facts: dict[str, Any] = {
            "columns": {name: column_digests[name] for name in self.columns},
            "fields": sorted(self.fields),
            "split": self.split,
        }
        if self.split_by != SPLIT:
            facts["split_by"] = self.split_by
        if self.filter is not None:
            facts["filter"] = [filters.VERSION, self.filter.spelled()]
        if self.join:
            facts["join"] = dict(self.join)
        if self.buckets is not None:
            facts["buckets"] = self.buckets.resolved()
        return digest(facts, 64)


def select(
    facts: Mapping[str, Any],
    where: Any,
    fields: Sequence[str],
    split: str | None = None,
    split_by: str | None = SPLIT,
    filter: str | None = None,
    join: Mapping[str, Policy] | None = None,
    buckets: BucketOptions | None = None,
    names: Mapping[str, str] | None = None,
) -> Selection:
    """Check a selection against a dataset's manifest before anything is read. Raises UserError.

    `where` begins the messages; `names` are the keys that a file calls the arguments by.
    """
    require(facts, fields, where)
    known = filters.scalars_of(facts["columns"])
    called = {name: name for name in ("split_by", "filter", "join", "buckets")} | dict(names or {})
    if split is not None or (split_by is not None and split_by != SPLIT):
        if split_by is None:
            raise UserError(f"{where}: split {split} of a view that has no splits")
        _expect(facts, split_by, "str", f"{where}: {called['split_by']}")
    if split is not None and split_by == SPLIT and split not in facts["splits"]:
        raise UserError(f"{where}: no split {split}; there are {', '.join(facts['splits'])}")
    for column, policy in (join or {}).items():
        if column not in facts["columns"]:
            raise UserError(f"{where}: {called['join']}.{column}: no such column; there are {', '.join(known)}")
        if policy not in ("error", "skip", "none"):
            raise UserError(f"{where}: {called['join']}.{column}: {policy!r} is none of error, skip, none")
    if buckets is not None:
        for name in (WIDTH, HEIGHT):
            _expect(facts, name, "int", f"{where}: {called['buckets']}")
    checked = filters.parse(filter, known, f"{where}: {called['filter']}") if filter else None
    selection = Selection(tuple(fields), split, split_by, checked, dict(join or {}), buckets)
    refuse_behind(facts, selection.columns, where)
    return selection


def refuse_behind(facts: Mapping[str, Any], columns: Iterable[str], where: Any) -> None:
    """Refuse columns that lack the shards of rows that were added since. Raises UserError."""
    for column in columns:
        if late := behind(facts, column):
            raise UserError(f"{where}: {late}; {TO_CATCH_UP}")


def column_of(name: str) -> str:
    """base.image → base."""
    return name.partition(".")[0]


def _expect(facts: Mapping[str, Any], name: str, kind: str, where: str) -> None:
    """A declared scalar of this type, not one of those that every index has."""
    column, _, scalar = name.partition(".")
    columns = facts["columns"]
    found = columns[column]["scalars"].get(scalar) if column in columns else None
    if found is None:
        there = [f"{c}.{s}" for c, known in columns.items() for s, k in known["scalars"].items() if k == kind]
        raise UserError(f"{where}: no scalar {name}; of the right type there are: {', '.join(there) or 'none'}")
    if found != kind:
        raise UserError(f"{where}: {name} is of type {found}, not {kind}")
