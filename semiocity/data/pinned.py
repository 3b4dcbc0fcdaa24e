"""A dataset as it was: the manifest with given revisions of columns in place of the current ones. Login-node code."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from semiocity.data.manifest import BASE, column_folder, read_column_manifest, read_manifest, shard_entries
from semiocity.data.receipts import digest_line
from semiocity.errors import UserError
from semiocity.files import read_json


def pinned(dataset: Path, revisions: Mapping[str, str], shards: int | None = None) -> dict[str, Any]:
    """The dataset's manifest with just these columns (column → revision), and of them the first `shards` shards, such
    as were there before rows were added. Raises UserError when one is not on disk."""
    facts = read_manifest(dataset)
    columns = {name: _column(facts, dataset, name, revision) for name, revision in revisions.items()}
    if revisions[BASE] != facts["columns"].get(BASE, {}).get("revision"):
        facts = {**facts, **_of_base(dataset, revisions[BASE])}
    return _first(dataset, {**facts, "columns": columns}, shards or columns[BASE]["shards"])


def _of_base(dataset: Path, revision: str) -> dict[str, Any]:
    """What the manifest says of the dataset when it uses another revision of base than now."""
    base = read_column_manifest(dataset, BASE, revision)
    plan = read_json(dataset / "plans" / revision / "plan.json")
    return {
        "recipe": plan["recipe"],
        "digest": base["digest"],
        "rows": base["rows"],
        "splits": base["splits"],
        "files_seen": plan["files_seen"],
        "rejected": base["rejected"],
    }


def first_shards(dataset: Path, shards: int) -> dict[str, Any]:
    """The dataset's manifest as it was when it had so many shards, before rows were added.

    Columns that have fewer are left out. Raises UserError when base has fewer: then it is another dataset.
    """
    return _first(dataset, read_manifest(dataset), shards)


def _first(dataset: Path, facts: dict[str, Any], shards: int) -> dict[str, Any]:
    now = facts["columns"][BASE]["shards"]
    if now == shards:
        return facts
    if now < shards:
        raise UserError(f"{dataset}: has {now} shards, fewer than the {shards} it once had")
    columns = {
        name: column if column["shards"] == shards else _shortened(dataset, name, column, shards)
        for name, column in facts["columns"].items()
        if column["shards"] >= shards
    }
    splits: Counter[str] = Counter()
    for entry in islice(shard_entries(dataset, BASE, columns[BASE]["revision"]), shards):
        splits.update(entry["splits"])
    known = {"digest": columns[BASE]["digest"], "rows": columns[BASE]["rows"], "splits": dict(sorted(splits.items()))}
    return {**facts, "columns": columns, **known}


def _shortened(dataset: Path, name: str, column: Mapping[str, Any], shards: int) -> dict[str, Any]:
    """What the manifest said of a column when it ended after so many shards."""
    digest, rows = hashlib.sha256(), 0
    tombstones: Counter[str] = Counter(dict.fromkeys(column["tombstones"], 0))
    for entry in islice(shard_entries(dataset, name, column["revision"]), shards):
        digest.update(digest_line(entry["shard"], entry["keys_digest"], entry["sha256"]))
        rows += entry["rows"]
        tombstones.update(entry["tombstones"])
    found = {"digest": digest.hexdigest(), "rows": rows, "shards": shards, "tombstones": dict(tombstones)}
    return {**column, **found}


def choose_revisions(facts: Mapping[str, Any], dataset: Path, wanted: Mapping[str, str], where: Any) -> dict[str, str]:
    """Column → revision: the wanted ones, for other columns the current. Raises UserError for what is not on disk."""
    chosen = {name: column["revision"] for name, column in facts["columns"].items()}
    for name, revision in wanted.items():
        if not (column_folder(dataset, name, revision) / "manifest.json").exists():
            there = ", ".join(revisions(dataset, name)) or "none"
            raise UserError(f"{where}: columns.{name}: no revision {revision} on disk; there are: {there}")
        chosen[name] = revision
    return chosen


def revisions(dataset: Path, column: str) -> list[str]:
    """Revisions of a column that have been merged, sorted."""
    folder = dataset / "columns" / column
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def _column(facts: Mapping[str, Any], dataset: Path, name: str, revision: str) -> dict[str, Any]:
    now = facts["columns"].get(name)
    if now is not None and now["revision"] == revision:
        return dict(now)
    if not (column_folder(dataset, name, revision) / "manifest.json").exists():
        raise UserError(f"{dataset}: column {name}: revision {revision} is no longer on disk")
    made = read_column_manifest(dataset, name, revision)
    kept = ("revision", "digest", "rows", "shards", "tombstones", "fields", "scalars")
    return {key: made[key] for key in kept}
