"""Where shards lie, what their receipts say, and the manifests merged from receipts.

    columns/COLUMN/current.json                      which revision of the column the dataset uses
    columns/COLUMN/REVISION/manifest.json            every shard of the column: rows, bytes, digests
    columns/COLUMN/REVISION/rejected.jsonl           one rejected source file a line
    columns/COLUMN/REVISION/00000/00000012.json      a shard's receipt, beside its .tar and .parquet
    manifest.json                                    the dataset: recipe, digest, columns, counts

Login-node code: JSON only, no numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.config import canonical, read_json, write_atomic, write_json
from semiocity.errors import UserError

FORMAT = 1
"""Version of shards, receipts, plans and manifests. Older data stay readable, or are refused with what to do."""

BASE = "base"
"""The column that `pack` makes; every other column has its shards and its keys."""

FOLDER_SHARDS = 1000
"""Shards in one folder, so that no directory grows without bound."""

SUFFIXES = (".tar", ".parquet", ".json")


@dataclass(frozen=True)
class ShardPath:
    """The three files of one shard of one column revision, and its lease."""

    folder: Path
    """…/columns/COLUMN/REVISION"""
    shard: int

    @property
    def stem(self) -> str:
        return f"{self.shard:08d}"

    @property
    def parent(self) -> Path:
        """The folder of a thousand shards that this one lies in."""
        return self.folder / f"{self.shard // FOLDER_SHARDS:05d}"

    @property
    def tar(self) -> Path:
        return self.parent / f"{self.stem}.tar"

    @property
    def parquet(self) -> Path:
        return self.parent / f"{self.stem}.parquet"

    @property
    def receipt(self) -> Path:
        return self.parent / f"{self.stem}.json"

    @property
    def lease(self) -> Path:
        return self.parent / f"{self.stem}.lease"

    def __str__(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}/{self.stem}"


def column_folder(dataset: Path, column: str, revision: str) -> Path:
    """The folder of one revision of a column."""
    return Path(dataset) / "columns" / column / revision


def check_format(found: Any, where: Path) -> None:
    """Refuse what another version of the format wrote. Raises UserError."""
    number = found.get("format") if isinstance(found, dict) else None
    if number == FORMAT:
        return
    if isinstance(number, int) and number > FORMAT:
        raise UserError(f"{where}: format {number}; this Semiocity reads up to {FORMAT}. Use a newer Semiocity")
    raise UserError(f"{where}: no file of format {FORMAT} (its format is {number!r}). Remove it and make it again")


def read_receipt(path: ShardPath) -> dict[str, Any] | None:
    """A shard's receipt, or None when it has none. Raises UserError when it is damaged or of another format."""
    try:
        receipt = read_json(path.receipt)
    except FileNotFoundError:
        return None
    check_format(receipt, path.receipt)
    return receipt


def complete(path: ShardPath) -> bool:
    """Whether receipt, tar and parquet of a shard are there."""
    return path.receipt.exists() and path.tar.exists() and path.parquet.exists()


def missing(folder: Path, shards: int) -> list[int]:
    """Numbers below `shards` for which receipt, tar and parquet are not all there. One listing a thousand shards."""
    absent: list[int] = []
    for first in range(0, shards, FOLDER_SHARDS):
        path = ShardPath(folder, first)
        try:
            with os.scandir(path.parent) as entries:
                names = {entry.name for entry in entries}
        except FileNotFoundError:
            names = set()
        for shard in range(first, min(first + FOLDER_SHARDS, shards)):
            stem = f"{shard:08d}"
            if any(stem + suffix not in names for suffix in SUFFIXES):
                absent.append(shard)
    return absent


# ---------------------------------------------------------------- merging


def merge(dataset: Path, column: str, revision: str, partial: bool = False) -> dict[str, Any]:
    """Make the column's manifest from its receipts, make it current, and rebuild the dataset's manifest.

    Doing it twice, or two columns at the same time, does no harm. With `partial` the column manifest is written for
    the shards that are there, and the dataset's manifest is left alone.
    Returns the column's manifest. Raises UserError when shards are missing, when receipts do not belong to this
    revision or to the parents' present shards, or when rows and rejected files do not add up to the files seen.
    """
    dataset = Path(dataset)
    folder = column_folder(dataset, column, revision)
    expected = _expected_shards(dataset, column, revision)
    absent = missing(folder, expected)
    if absent and not partial:
        names = ", ".join(f"{shard:08d}" for shard in absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(
            f"{folder}: {len(absent)} of {expected} shards are missing ({names}). Run the job again: only they are made"
        )
    gone = set(absent)
    manifest, rejected = _from_receipts(folder, column, revision, [s for s in range(expected) if s not in gone])
    if column == BASE:
        rejected = _planning_rejects(dataset, revision) + rejected
        manifest["rejected"] = dict(sorted(Counter(item["reason"] for item in rejected).items()))
        _check_counts(dataset, revision, manifest, partial)
    else:
        _check_parents(dataset, manifest)
    lines = "".join(canonical(item) + "\n" for item in rejected)
    write_atomic(folder / "rejected.jsonl", lines.encode())
    write_json(folder / "manifest.json", manifest)
    if not partial:
        write_json(folder.parent / "current.json", {"format": FORMAT, "revision": revision})
        _rebuild(dataset)
    return manifest


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


def merged(dataset: Path, column: str, revision: str, shards: int) -> bool:
    """Whether the dataset's manifest has this revision of a column with so many shards, and base all that was seen."""
    try:
        facts = read_manifest(dataset)
        found = facts["columns"].get(column, {})
        seen = column != BASE or facts["files_seen"] == _plan(dataset, revision)["files_seen"]
    except UserError:
        return False
    return bool(found.get("revision") == revision and found["shards"] == shards and seen)


def require(facts: Mapping[str, Any], needs: Sequence[str], dataset: Path) -> None:
    """Refuse a dataset, given by its manifest, that lacks one of the fields in `needs`. Raises UserError naming it."""
    for reference in needs:
        column, _, field = reference.partition(".")
        found = facts["columns"].get(column)
        if found is None:
            there = ", ".join(sorted(facts["columns"]))
            raise UserError(
                f"{dataset}: {reference} is needed, but there is no column {column} (there are: {there}); "
                "run the job that makes it first"
            )
        if field not in found["fields"] and field not in found["scalars"]:
            there = ", ".join([*found["fields"], *found["scalars"]])
            raise UserError(f"{dataset}: column {column} has no field {field} (it has: {there})")


def read_column_manifest(dataset: Path, column: str, revision: str) -> dict[str, Any]:
    """The manifest of one revision of a column. Raises UserError when there is none."""
    path = column_folder(dataset, column, revision) / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; merge the column {column} first") from None
    check_format(manifest, path)
    return manifest


def shards_digest(shards: list[dict[str, Any]]) -> str:
    """One sha256 over the ordered keys and the bytes of a column's shards."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard['shard']} {shard['keys_digest']} {shard['sha256']}\n".encode())
    return digest.hexdigest()


def _expected_shards(dataset: Path, column: str, revision: str) -> int:
    if column == BASE:
        return int(_plan(dataset, revision)["shards"])
    base = read_manifest(dataset)["columns"][BASE]
    return int(base["shards"])


def _plan(dataset: Path, revision: str) -> dict[str, Any]:
    path = dataset / "plans" / revision / "plan.json"
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such plan; `semiocity pack RECIPE` makes it") from None


def _planning_rejects(dataset: Path, revision: str) -> list[dict[str, str]]:
    with (dataset / "plans" / revision / "rejected.jsonl").open(encoding="ascii") as lines:
        return [json.loads(line) for line in lines]


_ENTRY = ("shard", "rows", "bytes", "sha256", "parquet_sha256", "keys_digest", "splits", "tombstones")
_SHARED = ("stage", "model", "fields", "scalars")


def _from_receipts(
    folder: Path, column: str, revision: str, shards: list[int]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    entries: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []
    tombstones: Counter[str] = Counter(permanent=0, retry=0)
    splits: Counter[str] = Counter()
    executions: dict[str, Any] = {}
    parents: dict[str, str] = {}
    shared: dict[str, Any] = {}
    for shard in shards:
        path = ShardPath(folder, shard)
        receipt = read_receipt(path)
        if receipt is None or (receipt["column"], receipt["revision"], receipt["shard"]) != (column, revision, shard):
            raise UserError(f"{path.receipt}: not the receipt of {path}. Remove it and run the job again")
        for name in _SHARED:
            if shared.setdefault(name, receipt[name]) != receipt[name]:
                raise UserError(
                    f"{path.receipt}: its {name} differs from that of the shards before it. "
                    "Remove the receipts that are wrong and run the job again"
                )
        for parent, named in receipt["parents"].items():
            if parents.setdefault(parent, named["revision"]) != named["revision"]:
                raise UserError(f"{path.receipt}: made from another revision of {parent} than the shards before it")
        entries.append({name: receipt[name] for name in _ENTRY} | {"parents": receipt["parents"]})
        executions[canonical(receipt["execution"])] = receipt["execution"]
        tombstones.update(receipt["tombstones"])
        splits.update(receipt["splits"])
        rejected.extend(receipt["rejected"])
    manifest = {
        "format": FORMAT,
        "column": column,
        "revision": revision,
        "digest": shards_digest(entries),
        "rows": sum(entry["rows"] for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "splits": dict(sorted(splits.items())),
        "shards": entries,
        "parents": parents,
        "executions": [executions[name] for name in sorted(executions)],
        "rejected": dict(sorted(Counter(item["reason"] for item in rejected).items())),
        "tombstones": dict(tombstones),
        **{name: shared.get(name) for name in _SHARED},
    }
    return manifest, rejected


def _check_counts(dataset: Path, revision: str, manifest: dict[str, Any], partial: bool) -> None:
    seen = int(_plan(dataset, revision)["files_seen"])
    counted = manifest["rows"] + sum(manifest["rejected"].values())
    if counted != seen and not partial:
        raise UserError(
            f"{dataset}: {manifest['rows']} rows and {counted - manifest['rows']} rejected files do not add up to the "
            f"{seen} files seen at planning. A receipt is not of this plan; run `semiocity verify {dataset}`"
        )


def _check_parents(dataset: Path, manifest: dict[str, Any]) -> None:
    """A column must be made from what its parents are now, shard by shard."""
    columns = read_manifest(dataset)["columns"]
    for parent, revision in {BASE: columns[BASE]["revision"], **manifest["parents"]}.items():
        now = columns.get(parent, {}).get("revision")
        if now != revision:
            raise UserError(
                f"{dataset}: column {manifest['column']} was made from {parent} revision {revision}, but "
                f"{parent} is now {now}. Run its job again"
            )
        shards = {s["shard"]: s for s in read_column_manifest(dataset, parent, revision)["shards"]}
        for entry in manifest["shards"]:
            source = shards[entry["shard"]]
            named = entry["parents"].get(parent)
            if entry["keys_digest"] != source["keys_digest"] or (named and named["sha256"] != source["sha256"]):
                raise UserError(
                    f"{manifest['column']}/{manifest['revision']}/{entry['shard']:08d}: made from another shard of "
                    f"{parent} than the present one. Remove its receipt and run the job again"
                )


def _current(dataset: Path) -> dict[str, str]:
    """Column → revision that the dataset uses."""
    found = {}
    for path in sorted((dataset / "columns").glob("*/current.json")):
        pointer = read_json(path)
        check_format(pointer, path)
        found[path.parent.name] = pointer["revision"]
    return found


def _rebuild(dataset: Path) -> None:
    """Write manifest.json from the current columns.

    Two merges may do this at the same time: each has written its own pointer first and looks again after writing, so
    whoever writes last has seen both.
    """
    current = _current(dataset)
    while True:
        write_json(dataset / "manifest.json", _dataset_manifest(dataset, current))
        again = _current(dataset)
        if again == current:
            return
        current = again


def _dataset_manifest(dataset: Path, current: dict[str, str]) -> dict[str, Any]:
    manifests = {name: read_column_manifest(dataset, name, revision) for name, revision in current.items()}
    base = manifests[BASE]
    plan = _plan(dataset, base["revision"])
    fresh = dict(_fresh(manifests))
    return {
        "format": FORMAT,
        "name": plan["recipe"]["name"],
        "recipe": plan["recipe"],
        "digest": base["digest"],
        "columns": {
            name: {
                "revision": m["revision"],
                "digest": m["digest"],
                "rows": m["rows"],
                "shards": len(m["shards"]),
                "tombstones": m["tombstones"],
                "fields": m["fields"],
                "scalars": m["scalars"],
            }
            for name, m in fresh.items()
        },
        "stale": {name: m["revision"] for name, m in manifests.items() if name not in fresh},
        "files_seen": plan["files_seen"],
        "rows": base["rows"],
        "rejected": base["rejected"],
        "splits": base["splits"],
    }


def _fresh(manifests: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The columns whose parents, and theirs, are the current ones. The others wait for their job to run again."""
    fresh: set[str] = set()
    pending = dict(manifests)
    while True:
        ready = [
            name
            for name, m in sorted(pending.items())
            if name == BASE or all(p in fresh and manifests[p]["revision"] == r for p, r in m["parents"].items())
        ]
        if not ready:
            return
        for name in ready:
            fresh.add(name)
            yield name, pending.pop(name)
