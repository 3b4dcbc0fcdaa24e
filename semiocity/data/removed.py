"""Rows that were taken down for good: what is remembered of them, so that they do not come back.

`removed.jsonl` in the dataset's folder has a line for each: the hash of the row's id and the reason, nothing that says
what the row was. It is written before anything is removed, so that a removal that was cut short can go on.
Login-node code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from semiocity.files import canonical, write_atomic


class Removed(NamedTuple):
    """A row that was, or is being, taken down."""

    id_sha256: str
    reason: str
    date: str
    """Day of the request, YYYY-MM-DD."""
    kept_by: tuple[str, ...] = ()
    """COLUMN/REVISION of `duplicates` in which its cluster, of which more is left, kept just this row."""


def read_removed(dataset: Path) -> list[Removed]:
    """In the order of the requests."""
    try:
        lines = _file(dataset).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    facts = [json.loads(line) for line in lines]
    return [Removed(**{**item, "kept_by": tuple(item.get("kept_by", ()))}) for item in facts]


def unkept(dataset: Path, column: str, revision: str) -> str | None:
    """What is wrong with a revision of `duplicates` whose clusters lost the rows that they keep, or None."""
    count = sum(f"{column}/{revision}" in item.kept_by for item in read_removed(dataset))
    if not count:
        return None
    return f"{count} clusters lost the row that they keep, which was taken down: {column}.keep has none of theirs"


def remember(dataset: Path, more: Iterable[Removed]) -> None:
    """Add to the list those that are not on it."""
    listed = {item.id_sha256: item for item in read_removed(dataset)}
    for item in more:
        listed.setdefault(item.id_sha256, item)
    write_atomic(_file(dataset), "".join(canonical(item._asdict()) + "\n" for item in listed.values()).encode())


def _file(dataset: Path) -> Path:
    return Path(dataset) / "removed.jsonl"
