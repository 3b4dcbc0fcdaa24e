"""Source files that are no rows: how many, why, and which. Login-node code: standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.data.layout import BASE, column_folder
from semiocity.data.manifest import read_manifest


def counted(rejected: Mapping[str, int]) -> str:
    """`3 rejected: 2 image_damaged, 1 label_missing`, the most frequent first; `0 rejected`."""
    reasons = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    words = ", ".join(f"{count} {reason}" for reason, count in reasons)
    return f"{sum(rejected.values())} rejected" + (f": {words}" if words else "")


def summary(dataset: Path) -> str:
    """Rows and rejected files of a packed dataset, and where these are listed. Raises UserError when there is none."""
    facts = read_manifest(dataset)
    where = f" ({listing(dataset, facts)})" if facts["rejected"] else ""
    return f"{dataset}: {facts['rows']} rows, {counted(facts['rejected'])}{where}"


def listing(dataset: Path, facts: Mapping[str, Any]) -> Path:
    """The file that lists them, a line each: id, reason, detail. `facts` is the dataset's manifest."""
    return column_folder(dataset, BASE, facts["columns"][BASE]["revision"]) / "rejected.jsonl"


def reason_of(dataset: Path, name: str) -> dict[str, str] | None:
    """The first rejected file that is called `name` (its path, with or without extension, or the end of that)."""
    with suppress(FileNotFoundError), listing(dataset, read_manifest(dataset)).open(encoding="ascii") as lines:
        for line in lines:
            found: dict[str, str] = json.loads(line)
            if any(f"/{known}".endswith(f"/{name}") for known in (found["id"], found["id"].rpartition(".")[0])):
                return found
    return None
