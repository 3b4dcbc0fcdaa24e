"""Rows that were taken down for good: what is remembered of them, so that they do not come back.

`removed.jsonl` in the dataset's folder has a line for each: the hash of the row's id and the reason, nothing that says
what the row was. It is written before anything is removed, so that a removal that was cut short goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Removed(NamedTuple):
    """A row that was, or is being, taken down."""

    id_sha256: str
    reason: str
    date: str
    """Day of the request, YYYY-MM-DD."""


def read_removed(dataset: Path) -> list[Removed]:
    """In the order of the requests."""
    try:
        lines = (Path(dataset) / "removed.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Removed(**json.loads(line)) for line in lines]
