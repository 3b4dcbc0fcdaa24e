"""Where columns come from: revisions on disk, what made them, and why some are not offered. Login-node code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity.data.corrections import notes
from semiocity.data.lease import Owner
from semiocity.data.manifest import (
    BASE,
    TO_CATCH_UP,
    behind,
    column_folder,
    lineage,
    merge,
    missing,
    read_column_manifest,
    read_manifest,
)
from semiocity.errors import UserError
from semiocity.files import read_json


def columns(dataset: Path) -> dict[str, Any]:
    """Every column with its revisions, as one JSON value. Raises UserError when there is no dataset."""
    facts = read_manifest(dataset)
    current = _current(dataset)
    found = []
    for folder in sorted((dataset / "columns").iterdir(), key=lambda path: (path.name != BASE, path.name)):
        revisions = [_revision(dataset, folder.name, path.name) for path in sorted(folder.iterdir()) if path.is_dir()]
        used = current.get(folder.name)
        for item in revisions:
            item["current"] = item["revision"] == used
            item["trouble"] = _trouble(facts, current, folder.name, item) if item["current"] else None
        told = notes(dataset, folder.name, used) if used else []
        found.append({"column": folder.name, "current": used, "revisions": revisions, "notes": told})
    return {"dataset": facts["name"], "rows": facts["rows"], "columns": found}


def use(dataset: Path, column: str, revision: str) -> None:
    """Make a revision the one that the dataset uses. Raises UserError when it is not whole, or made from other parents
    than the current ones."""
    if not (column_folder(dataset, column, revision) / "manifest.json").exists():
        folder = dataset / "columns" / column
        there = ", ".join(sorted(path.parent.name for path in folder.glob("*/manifest.json"))) or "none"
        raise UserError(f"{dataset}: column {column} has no revision {revision} that was merged; there are: {there}")
    lacking = missing(column_folder(dataset, column, revision), read_manifest(dataset)["columns"][BASE]["shards"])
    if lacking and len(lineage(dataset, column, revision)) > 1:  # rows were added while it was not in use
        from semiocity.data.corrected import catch_up

        catch_up(dataset, column, revision, Owner.here("columns"))
    merge(dataset, column, revision, use=True)


def _current(dataset: Path) -> dict[str, str]:
    """Column → the revision that its pointer names."""
    return {path.parent.name: read_json(path)["revision"] for path in (dataset / "columns").glob("*/current.json")}


def _revision(dataset: Path, column: str, revision: str) -> dict[str, Any]:
    try:
        made = read_column_manifest(dataset, column, revision)
    except UserError as error:
        if (column_folder(dataset, column, revision) / "manifest.json").exists():
            return {"revision": revision, "merged": False, "note": str(error)}
        return {"revision": revision, "merged": False, "note": "not merged: its job has not come to its end"}
    kept = ("revision", "shards", "rows", "bytes", "parquet_bytes", "fields", "scalars", "tombstones", "stage", "model")
    return {**{name: made[name] for name in kept}, "executions": made["executions"], "parents": made["parents"]} | {
        "merged": True
    }


def _trouble(facts: Mapping[str, Any], current: Mapping[str, str], column: str, item: Mapping[str, Any]) -> str | None:
    """Why a current column is not offered, or None."""
    if not item["merged"]:
        return str(item["note"])
    if column in facts["columns"]:
        late = behind(facts, column)
        return late and f"{late}; {TO_CATCH_UP}"
    for parent, revision in item["parents"].items():
        now = current.get(parent)
        if now != revision:
            return f"out of date: made from {parent} {revision}, which is now {now}; run its job again"
    stale = [parent for parent in item["parents"] if parent in facts["stale"]]
    return f"out of date: {', '.join(stale) or 'a parent'} is; run their jobs again, then this one's"


def render(facts: Mapping[str, Any]) -> str:
    """The columns as text for a person."""
    lines = [f"dataset {facts['dataset']}: {facts['rows']} rows"]
    for column in facts["columns"]:
        lines.append(column["column"])
        lines += [f"  note: {note}" for note in column["notes"]]
        for item in sorted(column["revisions"], key=lambda item: not item["current"]):
            lines += [f"  {line}" for line in _lines(item)]
    return "\n".join(lines)


def _lines(item: Mapping[str, Any]) -> list[str]:
    mark = "current" if item["current"] else "on disk"
    if not item["merged"]:
        return [f"{item['revision']}  {mark}  {item['note']}"]
    size = (item["bytes"] + item["parquet_bytes"]) / 1e6
    dead = ", ".join(f"{count} {kind}" for kind, count in item["tombstones"].items() if count)
    head = f"{item['revision']}  {mark}  {item['rows']} rows in {item['shards']} shards, {size:.1f} MB"
    if not item["current"]:
        return [head + f"; {_stage(item)}"]
    lines = [head + (f", tombstones: {dead}" if dead else "")]
    if item["trouble"]:
        lines.append(f"  ! {item['trouble']}")
    lines.append(f"  made by   {_stage(item)}")
    lines += [f"  {'' if i else 'class':<9} {_words(execution)}" for i, execution in enumerate(item["executions"])]
    if item["parents"]:
        lines.append("  from      " + ", ".join(f"{name} {revision}" for name, revision in item["parents"].items()))
    lines.append("  fields    " + ", ".join(f"{name} ({ext})" for name, ext in item["fields"].items()))
    if item["scalars"]:
        lines.append("  scalars   " + ", ".join(f"{name} ({kind})" for name, kind in item["scalars"].items()))
    return lines


def _stage(item: Mapping[str, Any]) -> str:
    """`caption 2, captioner=labels, model 0123456789ab`"""
    stage = item["stage"]
    parts = [f"{stage['name']} {stage['version']}", _words(stage["args"])]
    return ", ".join([part for part in parts if part] + ([f"model {item['model'][:12]}"] if item["model"] else []))


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )


def healthy(facts: Mapping[str, Any]) -> bool:
    """Whether every current column is offered."""
    return not any(item["trouble"] for column in facts["columns"] for item in column["revisions"])
