"""What a dataset's manifests say: which columns it has, which revisions it uses, and what is wrong with them.

Login-node code: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiocity.data.layout import BASE, check_format, column_folder
from semiocity.data.receipts import ShardEntries
from semiocity.errors import UserError
from semiocity.files import read_json

EDIT = "edit"
"""Name of the stage that receipts of corrected shards have."""


def read_manifest(dataset: Path) -> dict[str, Any]:
    """The dataset's manifest. Raises UserError when there is none, with what makes one."""
    path = Path(dataset) / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; is {dataset} a dataset packed to its end? `semiocity pack RECIPE` makes one"
        ) from None
    check_format(manifest, path)
    return manifest


def current(dataset: Path, column: str) -> str | None:
    """The revision of a column that the dataset's manifest names; None when the column is not there (yet)."""
    try:
        facts = read_manifest(dataset)
    except UserError:
        return None
    return facts["columns"].get(column, {}).get("revision")


def pointers(dataset: Path) -> dict[str, str]:
    """Column → revision that the dataset uses."""
    found = {}
    for path in sorted((dataset / "columns").glob("*/current.json")):
        pointer = read_json(path)
        check_format(pointer, path)
        found[path.parent.name] = pointer["revision"]
    return found


def corrected(dataset: Path, column: str, revision: str) -> str | None:
    """The revision that the dataset uses if it is `revision` with corrections by hand (`edit.py`), else None."""
    now = pointers(Path(dataset)).get(column)
    if now is None or now == revision:
        return None
    return now if revision in lineage(dataset, column, now) else None


def lineage(dataset: Path, column: str, revision: str) -> list[str]:
    """The revision, the one that it is corrections of, and so on, as far as they are on disk."""
    found = [revision]
    while True:
        try:
            stage = read_column_manifest(Path(dataset), column, found[-1])["stage"]
        except UserError:
            return found
        if stage["name"] != EDIT:
            return found
        found.append(stage["args"]["of"]["revision"])


def require(facts: Mapping[str, Any], needs: Sequence[str], dataset: Path) -> None:
    """Refuse a dataset, given by its manifest, that lacks one of the fields in `needs`. Raises UserError naming it."""
    for reference in needs:
        column, _, field = reference.partition(".")
        found = facts["columns"].get(column)
        if found is not None and (late := behind(facts, column)):
            raise UserError(f"{dataset}: {reference} is needed, but {late}; {TO_CATCH_UP}")
        if found is None:
            there = ", ".join(sorted(facts["columns"]))
            raise UserError(
                f"{dataset}: {reference} is needed, but there is no column {column} (there are: {there}); "
                "run the job that makes it first"
            )
        if field not in found["fields"] and field not in found["scalars"]:
            there = ", ".join([*found["fields"], *found["scalars"]])
            raise UserError(f"{dataset}: column {column} has no field {field} (it has: {there})")


TO_CATCH_UP = "run its job again: only they are made (a reduce, such as duplicates, makes its column anew)"
"""What to do about a column that is behind."""


def behind(facts: Mapping[str, Any], column: str) -> str | None:
    """What is wrong with a column that lacks the shards of rows that were added since it was made, or None. To do about
    it is `TO_CATCH_UP`."""
    wanted, there = (facts["columns"][name]["shards"] for name in (BASE, column))
    if there == wanted:
        return None
    return f"column {column} lacks {wanted - there} of {wanted} shards, since rows were added"


def read_column_manifest(dataset: Path, column: str, revision: str) -> dict[str, Any]:
    """The manifest of one revision of a column. Raises UserError when there is none."""
    path = column_folder(dataset, column, revision) / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; merge the column {column} first") from None
    check_format(manifest, path)
    return manifest


def shard_entries(dataset: Path, column: str, revision: str) -> ShardEntries:
    """What the column's manifest says of each shard, read a thousand at a time. Raises UserError when there is none."""
    return ShardEntries(column_folder(dataset, column, revision), read_column_manifest(dataset, column, revision))
