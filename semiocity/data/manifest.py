"""The manifests merged from receipts, of a column and of the dataset. Where they lie: layout.py; reading: state.py.

Login-node code: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.data.layout import (
    BASE,
    FOLDER_SHARDS,
    FORMAT,
    SUFFIXES,
    ShardPath,
    check_format,
    column_folder,
    complete,
    missing,
    read_receipt,
)
from semiocity.data.receipts import SHARED, ShardEntries, Thousand, compact, digest_line, receipts_file, rejected_file
from semiocity.data.state import (
    EDIT,
    TO_CATCH_UP,
    behind,
    corrected,
    current,
    lineage,
    pointers,
    read_column_manifest,
    read_manifest,
    require,
    shard_entries,
)
from semiocity.errors import UserError
from semiocity.files import canonical, read_json, replacing, write_json

__all__ = [
    "BASE",
    "EDIT",
    "FOLDER_SHARDS",
    "FORMAT",
    "SUFFIXES",
    "TO_CATCH_UP",
    "ShardPath",
    "behind",
    "check_format",
    "column_folder",
    "complete",
    "corrected",
    "current",
    "lineage",
    "merge",
    "merged",
    "missing",
    "read_column_manifest",
    "read_manifest",
    "read_receipt",
    "rebuild",
    "require",
    "shard_entries",
]


def merged(dataset: Path, column: str, revision: str, shards: int) -> bool:
    """Whether the dataset's manifest has this revision of a column with so many shards, and base all that was seen."""
    try:
        facts = read_manifest(dataset)
        found = facts["columns"].get(column, {})
        seen = column != BASE or facts["files_seen"] == _plan(dataset, revision)["files_seen"]
    except UserError:
        return False
    now = found.get("revision")
    right = now is not None and now in (revision, corrected(dataset, column, revision))
    return bool(right and found["shards"] == shards and seen)


# ---------------------------------------------------------------- merging


def merge(
    dataset: Path,
    column: str,
    revision: str,
    partial: bool = False,
    reread: bool = False,
    aside: bool = False,
    use: bool | None = None,
) -> dict[str, Any]:
    """Make the column's manifest from its receipts, make it current, and rebuild the dataset's manifest.

    Receipts that have not changed since the last merge are not opened again, unless `reread`. Doing it twice, or two
    columns at the same time, does no harm. With `partial` the column manifest is written for the shards that are
    there, and the dataset's manifest is left alone. `aside` is for a revision that the dataset does not use, or for the
    caller to `rebuild` later: parents are those that the receipts name, and the dataset's manifest is left alone.
    `use`: whether the revision becomes the current one; by default unless what is current is corrections of it.
    Returns the column's manifest. Raises UserError when shards are missing, when receipts do not belong to this
    revision or to the parents' present shards, or when rows and rejected files do not add up to the files seen.
    """
    dataset = Path(dataset)
    folder = column_folder(dataset, column, revision)
    known = read_column_manifest(dataset, column, revision)["shards"] if aside else None
    expected = known or _expected_shards(dataset, column, revision)
    gone = missing(folder, expected)
    if gone and not partial:
        names = ", ".join(f"{shard:08d}" for shard in gone[:5]) + (" …" if len(gone) > 5 else "")
        raise UserError(
            f"{folder}: {len(gone)} of {expected} shards are missing ({names}). Run the job again: only they are made"
        )
    parents = None if column == BASE else Parents(dataset, column, revision, None if aside else read_manifest(dataset))
    summary = summarize(dataset, folder, expected, set(gone), reread, parents)
    if column == BASE:
        _check_counts(dataset, revision, summary.manifest, partial)
    summary.publish()
    if not partial and not aside:
        if use or (use is None and corrected(dataset, column, revision) is None):
            write_json(folder.parent / "current.json", {"format": FORMAT, "revision": revision})
        rebuild(dataset)
    return summary.manifest


@dataclass(frozen=True)
class Summary:
    """A column's manifest that is not yet written."""

    folder: Path
    manifest: dict[str, Any]
    details: list[Path]
    """Files of rejected source files, in order."""

    def publish(self) -> None:
        """Write the manifest, then remove the compacted receipts that only the one before it named."""
        before = named_files(self.folder)
        with replacing(self.folder / "rejected.jsonl") as file:
            for path in self.details:
                with path.open("rb") as lines:
                    shutil.copyfileobj(lines, file, 1 << 20)
        write_json(self.folder / "manifest.json", self.manifest)
        # Read again: another merge may have been faster, and its files must stay.
        for path in before - named_files(self.folder):
            path.unlink(missing_ok=True)


def summarize(
    dataset: Path, folder: Path, shards: int, gone: set[int], reread: bool, parents: Parents | None
) -> Summary:
    """Add up the receipts of a column's first `shards` shards but for those in `gone`, compacting them on the way.

    Raises UserError for receipts that are at odds with each other or, where `parents` are given, with their shards.
    """
    totals = _Totals(folder)
    for first in range(0, shards, FOLDER_SHARDS):
        there = [shard for shard in range(first, min(first + FOLDER_SHARDS, shards)) if shard not in gone]
        if there:
            thousand = compact(folder, first // FOLDER_SHARDS, there, reread)
            if parents is not None:
                parents.check(thousand)
            totals.add(thousand)
    manifest = totals.manifest()
    if folder.parent.name == BASE:
        planned = dataset / "plans" / folder.name / "rejected.jsonl"
        with planned.open(encoding="ascii") as lines:
            reasons = Counter(json.loads(line)["reason"] for line in lines)
        manifest["rejected"] = dict(sorted((reasons + Counter(manifest["rejected"])).items()))
        totals.details.insert(0, planned)
    return Summary(folder, manifest, totals.details)


class _Totals:
    """A column's manifest, added up from its thousands; each is let go of as soon as it is counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.details: list[Path] = []
        """Files of rejected source files, in order."""
        self._digest = hashlib.sha256()
        self._lines: list[dict[str, Any]] = []
        self._first: dict[str, Any] = {}
        self._executions: dict[str, Any] = {}

    def add(self, thousand: Thousand) -> None:
        """Raises UserError when the thousand is at odds with those before it."""
        facts = thousand.facts
        shared = {name: facts[name] for name in SHARED}
        shared["parents"] = {name: parent["revision"] for name, parent in facts["parents"].items()}
        self._first = self._first or shared
        for name in shared:
            if shared[name] != self._first[name]:
                where = ShardPath(self.folder, thousand.shards[0])
                raise UserError(
                    f"{where.parent}: {name} of its receipts differs from that of the shards before. "
                    "Remove the receipts that are wrong and run the job again"
                )
        self._executions |= {canonical(item): item for item in facts["executions"]}
        for shard, keys, sha256 in zip(facts["shards"], facts["keys_digest"], facts["sha256"]):
            self._digest.update(digest_line(shard, keys, sha256))
        details = rejected_file(self.folder, thousand.number, facts["rejected_sha256"])
        if details is not None:
            self.details.append(details)
        self._lines.append(thousand.line())

    def manifest(self) -> dict[str, Any]:
        """`digest` is one sha256 over the ordered keys and the bytes of all shards."""

        def counted(name: str) -> dict[str, int]:
            counts: Counter[str] = Counter()
            for line in self._lines:
                counts.update(line[name])
            return dict(sorted(counts.items()))

        return {
            "format": FORMAT,
            "column": self.folder.parent.name,
            "revision": self.folder.name,
            "digest": self._digest.hexdigest(),
            **{name: sum(line[name] for line in self._lines) for name in ("shards", "rows", "bytes", "parquet_bytes")},
            "splits": counted("splits"),
            "tombstones": {"permanent": 0, "removed": 0, "retry": 0} | counted("tombstones"),
            "rejected": counted("rejected"),
            "executions": [self._executions[name] for name in sorted(self._executions)],
            "parents": self._first.get("parents", {}),
            **{name: self._first.get(name) for name in SHARED},
            "thousands": self._lines,
        }


def named_files(folder: Path) -> set[Path]:
    """The compacted receipts, and their rejected source files, that the column's manifest names."""
    try:
        lines = read_json(folder / "manifest.json").get("thousands", [])
    except (FileNotFoundError, UserError):
        return set()
    files = {receipts_file(folder, line["thousand"], line["sha256"]) for line in lines}
    rejected = {rejected_file(folder, line["thousand"], line["rejected_sha256"]) for line in lines}
    return files | {path for path in rejected if path is not None}


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


def _check_counts(dataset: Path, revision: str, manifest: dict[str, Any], partial: bool) -> None:
    seen = int(_plan(dataset, revision)["files_seen"])
    counted = manifest["rows"] + sum(manifest["rejected"].values())
    if counted != seen and not partial:
        raise UserError(
            f"{dataset}: {manifest['rows']} rows and {counted - manifest['rows']} rejected files do not add up to the "
            f"{seen} files seen at planning. A receipt is not of this plan; run `semiocity verify {dataset}`"
        )


class Parents:
    """A column must be made from what its parents are now, shard by shard."""

    def __init__(self, dataset: Path, column: str, revision: str, facts: Mapping[str, Any] | None) -> None:
        """`facts` is the dataset's manifest, whose revisions the parents must have; None takes any."""
        self.dataset = dataset
        self.name = f"{column}/{revision}"
        self.column = column
        self._now = None if facts is None else {name: found["revision"] for name, found in facts["columns"].items()}
        self._entries: dict[str, ShardEntries] = {}

    def check(self, thousand: Thousand) -> None:
        """Raises UserError naming the first shard of `thousand` that is made from something else. Call in order."""
        made = {name: parent["revision"] for name, parent in thousand.facts["parents"].items()}
        for parent, revision in made.items() if self._now is None else {BASE: self._now[BASE], **made}.items():
            source = self._source(parent, revision, thousand.number)
            named = thousand.facts["parents"].get(parent, {}).get("sha256")
            for i, shard in enumerate(thousand.shards):
                j = -1 if source is None else source.places.get(shard, -1)
                if (
                    source is None
                    or j < 0
                    or thousand.facts["keys_digest"][i] != source.facts["keys_digest"][j]
                    or (named and named[i] != source.facts["sha256"][j])
                ):
                    raise UserError(
                        f"{self.name}/{shard:08d}: made from another shard of {parent} than the present one. "
                        "Remove its receipt and run the job again"
                    )

    def _source(self, parent: str, revision: str, number: int) -> Thousand | None:
        now = revision if self._now is None else self._now.get(parent)
        if now != revision:
            raise UserError(
                f"{self.dataset}: column {self.column} was made from {parent} revision {revision}, but "
                f"{parent} is now {now}. Run its job again"
            )
        if parent not in self._entries:
            self._entries[parent] = shard_entries(self.dataset, parent, revision)
        return self._entries[parent].thousand(number)


def rebuild(dataset: Path) -> None:
    """Write manifest.json from the current columns.

    Two merges may do this at the same time: each has written its own pointer first and looks again after writing, so
    whoever writes last has seen both.
    """
    current = pointers(dataset)
    while True:
        write_json(dataset / "manifest.json", _dataset_manifest(dataset, current))
        again = pointers(dataset)
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
                "shards": m["shards"],
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
