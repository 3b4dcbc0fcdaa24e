"""A dataset as it was: the manifest with given revisions of columns in place of the current ones. Login-node code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity.data.manifest import BASE, column_folder, read_column_manifest, read_manifest
from semiocity.errors import UserError
from semiocity.files import read_json


def pinned(dataset: Path, revisions: Mapping[str, str]) -> dict[str, Any]:
    """The dataset's manifest with just these columns (column → revision). Raises UserError when one is not on disk."""
    facts = read_manifest(dataset)
    columns = {name: _column(facts, dataset, name, revision) for name, revision in revisions.items()}
    if revisions[BASE] == facts["columns"].get(BASE, {}).get("revision"):
        return {**facts, "columns": columns}
    base = read_column_manifest(dataset, BASE, revisions[BASE])
    plan = read_json(dataset / "plans" / revisions[BASE] / "plan.json")
    return {
        **facts,
        "columns": columns,
        "recipe": plan["recipe"],
        "digest": base["digest"],
        "rows": base["rows"],
        "splits": base["splits"],
        "files_seen": plan["files_seen"],
        "rejected": base["rejected"],
    }


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
