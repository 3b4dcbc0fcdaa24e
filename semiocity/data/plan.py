"""The frozen plan: which row goes into which shard, decided once on the login node, before any task runs.

    plans/REVISION/plan.jsonl       line i: the rows of shard i
    plans/REVISION/rejected.jsonl   files rejected while planning
    plans/REVISION/plan.json        settings, counts, byte offset of each line; written last

The same recipe over the same files (names and sizes) gives the same revision, wherever the files lie. Rows are sorted
by key through files of 1/256 each, so that a billion rows need no memory to speak of.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from semiocity.config import canonical, check, fsync_folder, read_json, write_json
from semiocity.data.keys import DIGITS, key_of, printable
from semiocity.data.manifest import BASE, FORMAT, ShardPath, check_format, column_folder
from semiocity.data.recipe import FIELDS, Recipe
from semiocity.data.sources import entries_of, version_of
from semiocity.data.sources.base import Entry, Rejection
from semiocity.data.splits import Splitter
from semiocity.errors import UserError

PACKER_VERSION = 1
"""Raised whenever packing the same plan would give other bytes."""

ABANDONED_S = 86_400


class PlanRow(NamedTuple):
    """One row of the base column before it is packed."""

    key: str
    entry: Entry


class Plan:
    """A plan on disk. Opening reads `plan.json` only; rows are read a shard at a time."""

    def __init__(self, dataset: Path, content: dict[str, Any]) -> None:
        self.dataset = dataset
        self.revision: str = content["revision"]
        self.shards: int = content["shards"]
        self.rows_planned: int = content["rows"]
        self.files_seen: int = content["files_seen"]
        self.rejected: dict[str, int] = content["rejected"]
        """Reason → files rejected while planning."""
        self.fields: tuple[str, ...] = tuple(content["fields"])
        """Logical fields that rows may have, without meta."""
        recipe, root = content["recipe"], content["root"]
        if root is not None:
            recipe = {**recipe, "source": {**recipe["source"], "root": root, "link_roots": content["link_roots"]}}
        self.recipe: Recipe = check(recipe, Recipe, where=str(_folder(dataset, self.revision) / "plan.json"))
        self._offsets: list[int] = content["offsets"]

    @classmethod
    def open(cls, dataset: Path, revision: str) -> Plan:
        """Raises UserError when there is no such plan."""
        path = _folder(Path(dataset), revision) / "plan.json"
        try:
            content = read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such plan; `semiocity pack RECIPE` makes it") from None
        check_format(content, path)
        return cls(Path(dataset), content)

    @property
    def folder(self) -> Path:
        """Where the base column of this plan goes."""
        return column_folder(self.dataset, BASE, self.revision)

    def path(self, shard: int) -> ShardPath:
        """Where shard number `shard` goes."""
        return ShardPath(self.folder, shard)

    def rows(self, shard: int) -> list[PlanRow]:
        """The rows of a shard, in the order of their keys."""
        with (_folder(self.dataset, self.revision) / "plan.jsonl").open("rb") as lines:
            lines.seek(self._offsets[shard])
            return [PlanRow(key, Entry(*entry)) for key, *entry in json.loads(lines.readline())]


def make_plan(recipe: Recipe, dataset: Path) -> Plan:
    """List the source, sort, cut into shards, and freeze the result below `dataset`.

    A plan that is already there is used again. Raises UserError when the source has nothing to pack, or has label maps
    while the recipe has no classes.
    """
    dataset = Path(dataset)
    plans = dataset / "plans"
    plans.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(plans)
    with tempfile.TemporaryDirectory(prefix=".making.", dir=plans) as scratch:
        content = _write(recipe, Path(scratch))
        folder = _folder(dataset, content["revision"])
        folder.mkdir(exist_ok=True)
        if not (folder / "plan.json").exists():
            for name in ("plan.jsonl", "rejected.jsonl"):
                (Path(scratch) / name).rename(folder / name)
            fsync_folder(folder)
    if not _same(folder / "plan.json", content):
        write_json(folder / "plan.json", content)
    return Plan(dataset, content)


def _folder(dataset: Path, revision: str) -> Path:
    return dataset / "plans" / revision


def _same(path: Path, content: dict[str, Any]) -> bool:
    try:
        return bool(read_json(path) == content)
    except (FileNotFoundError, UserError):
        return False


def _write(recipe: Recipe, scratch: Path) -> dict[str, Any]:
    """Write plan.jsonl and rejected.jsonl into `scratch`; returns the content of plan.json."""
    listing = _Listing(recipe, scratch)
    splitter = Splitter(recipe)
    listing.fill(splitter.assign(entries_of(recipe.source)))
    offsets, rows, digest = _cut(listing.rows(), recipe, scratch / "plan.jsonl")
    _check(recipe, listing, rows)
    settings = {
        "recipe": recipe.resolved(),
        "source_version": version_of(recipe.source.kind),
        "packer_version": PACKER_VERSION,
        "fields": [name for name in FIELDS if name in listing.fields | set(recipe.fields or ())],
        "split_files": splitter.files,
    }
    rejected = (scratch / "rejected.jsonl").read_bytes()
    fingerprint = [canonical(settings), digest, hashlib.sha256(rejected).hexdigest()]
    root = getattr(recipe.source, "root", None)
    return {
        "format": FORMAT,
        "revision": hashlib.sha256("\n".join(fingerprint).encode()).hexdigest()[:10],
        "root": None if root is None else str(Path(root).resolve()),
        "link_roots": [str(Path(folder).resolve()) for folder in getattr(recipe.source, "link_roots", ())],
        **settings,
        "shards": len(offsets),
        "rows": rows,
        "files_seen": listing.seen,
        "rejected": dict(sorted(listing.rejected.items())),
        "offsets": offsets,
    }


def _check(recipe: Recipe, listing: _Listing, rows: int) -> None:
    if not rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(listing.rejected.items()))
        raise UserError(
            f"{recipe.name}: nothing to pack: {listing.seen} picture files seen, rejected: {counts or 'none'}"
        )
    if "label" in listing.fields and not recipe.classes:
        raise UserError(
            f"{recipe.name}: the source has label maps but the recipe has no classes; add [[classes]] with name and "
            "color for each id"
        )


class _Listing:
    """A source's entries, spread over files by the first byte of their key's hash, read back in order of keys."""

    def __init__(self, recipe: Recipe, scratch: Path) -> None:
        self._promised = [name for name in recipe.fields or () if name != "image"]
        self._scratch = scratch
        self.seen = 0
        self.fields: set[str] = set()
        self.rejected: Counter[str] = Counter()

    def fill(self, entries: Iterable[Entry | Rejection]) -> None:
        with ExitStack() as stack:
            buckets: dict[str, IO[str]] = {}
            self._rejects = stack.enter_context(self._open("rejected.jsonl", "x"))
            for entry in entries:
                self.seen += 1
                if isinstance(entry, Rejection):
                    self._reject(entry)
                    continue
                absent = [name for name in self._promised if entry.sizes and name not in entry.sizes]
                if absent:
                    self._reject(Rejection(entry.name, f"{absent[0]}_missing", "promised by the recipe"))
                    continue
                self.fields.update(entry.sizes)
                key = key_of(entry.id)
                if key[:2] not in buckets:
                    buckets[key[:2]] = stack.enter_context(self._open(f"{key[:2]}.bucket", "x"))
                buckets[key[:2]].write(canonical([key, *entry]) + "\n")

    def rows(self) -> Iterator[PlanRow]:
        """Rows in ascending order of keys; those with an id seen before are rejected."""
        with self._open("rejected.jsonl", "a") as self._rejects:
            for path in sorted(self._scratch.glob("*.bucket")):
                with path.open(encoding="ascii") as lines:
                    found = [(item[0], Entry(*item[1:])) for item in map(json.loads, lines)]
                path.unlink()
                yield from self._resolve(found)

    def _resolve(self, found: list[tuple[str, Entry]]) -> list[PlanRow]:
        """Give out the keys of one bucket: first come first served in sorted order, by id and then by file."""
        found.sort(key=lambda pair: (pair[0], pair[1].id, pair[1].name))
        taken: dict[str, Entry] = {}
        for key, entry in found:
            for digits in DIGITS:
                holder = taken.setdefault(key_of(entry.id, digits), entry)
                if holder is entry:
                    break
                if holder.id == entry.id:
                    self._reject(Rejection(entry.name, "duplicate_id", f"{printable(holder.name)} is packed"))
                    break
            else:
                raise UserError(f"{printable(entry.name)}: no free key near {key}; rename the file")
        return [PlanRow(key, entry) for key, entry in sorted(taken.items())]

    def _reject(self, rejection: Rejection) -> None:
        self.rejected[rejection.reason] += 1
        self._rejects.write(canonical(rejection._asdict()) + "\n")

    def _open(self, name: str, mode: str) -> IO[str]:
        return (self._scratch / name).open(mode, encoding="ascii")


def _cut(rows: Iterator[PlanRow], recipe: Recipe, path: Path) -> tuple[list[int], int, str]:
    """Write one line a shard; returns the offsets of the lines, the number of rows, and the digest of the file."""
    offsets: list[int] = []
    total = 0
    digest = hashlib.sha256()
    position = 0
    with path.open("xb") as file:
        for shard in _shards(rows, recipe.shard_rows, recipe.shard_mb * 1e6):
            line = (canonical([[row.key, *row.entry] for row in shard]) + "\n").encode()
            offsets.append(position)
            position += file.write(line)
            digest.update(line)
            total += len(shard)
    return offsets, total, digest.hexdigest()


def _shards(rows: Iterator[PlanRow], most_rows: int, most_bytes: float) -> Iterator[list[PlanRow]]:
    shard: list[PlanRow] = []
    size = 0
    for row in rows:
        more = sum(row.entry.sizes.values())
        if shard and (len(shard) == most_rows or size + more > most_bytes):
            yield shard
            shard, size = [], 0
        shard.append(row)
        size += more
    if shard:
        yield shard


def _remove_abandoned(plans: Path) -> None:
    """Remove what planning that was killed more than a day ago left behind; younger folders may be in use."""
    for folder in plans.glob(".making.*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
