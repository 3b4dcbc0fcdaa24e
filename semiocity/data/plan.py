"""The frozen plan: which row goes into which shard, decided once on the login node, before any task runs.

    plans/REVISION/plan.jsonl        line i: the rows of shard i
    plans/REVISION/part-DIGEST.jsonl the same for rows that were added later, as further shards
    plans/REVISION/rejected.jsonl    files rejected while planning
    plans/REVISION/plan.json         settings, counts, byte offset of each line; written last

The same recipe over the same files (names and sizes) gives the same revision, wherever the files lie. When a source
has only grown, the plan grows: shards that are there stay as they are, and the new rows go into new ones. When it has
not, or the recipe is another, what was packed would be made anew: that is refused unless it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from semiocity.config import canonical, check, fsync_folder, json_bytes, read_json, write_atomic
from semiocity.data.listing import Listing, PlanRow
from semiocity.data.manifest import BASE, FORMAT, ShardPath, check_format, column_folder, current
from semiocity.data.plan_anew import in_use, refusal
from semiocity.data.recipe import Recipe
from semiocity.data.removed import read_removed
from semiocity.data.sources import entries_of, version_of
from semiocity.data.sources.base import Entry
from semiocity.data.splits import Splitter
from semiocity.errors import UserError

PACKER_VERSION = 3
"""Raised whenever packing the same plan would give other bytes. Since 3 a caption is a scalar too."""

ABANDONED_S = 86_400
SETTINGS = ("recipe", "source_version", "packer_version", "fields", "detector")


class Plan:
    """A plan on disk. Opening reads `plan.json` only; rows are read a shard at a time."""

    def __init__(self, dataset: Path, content: dict[str, Any]) -> None:
        self.dataset = dataset
        self.content = content
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
        self.detector: str | None = content.get("detector")
        """Digest of what finds the places to blur."""
        self.packer_version: int = content["packer_version"]
        """What its shards are made by: all of them by the same, also those of rows that came later."""
        if recipe.get("blur") and content.get("detector_path"):
            detector = {**recipe["blur"]["detector"], "path": content["detector_path"]}
            recipe = {**recipe, "blur": {**recipe["blur"], "detector": detector}}
        self.recipe: Recipe = check(recipe, Recipe, where=str(plan_folder(dataset, self.revision) / "plan.json"))
        self._ends = list(accumulate(len(part["offsets"]) for part in content["parts"]))

    @classmethod
    def open(cls, dataset: Path, revision: str) -> Plan:
        """Raises UserError when there is no such plan."""
        path = plan_folder(Path(dataset), revision) / "plan.json"
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
        number = bisect_right(self._ends, shard)
        part = self.content["parts"][number]
        with (plan_folder(self.dataset, self.revision) / part["file"]).open("rb") as lines:
            lines.seek(part["offsets"][shard - (self._ends[number - 1] if number else 0)])
            return _parse(lines.readline())

    def all_rows(self) -> Iterator[PlanRow]:
        """Every row, a shard at a time in memory."""
        for part in self.content["parts"]:
            with (plan_folder(self.dataset, self.revision) / part["file"]).open("rb") as lines:
                for line in lines:
                    yield from _parse(line)


def make_plan(recipe: Recipe, dataset: Path, anew: bool = False, *, write: bool = True) -> Plan:
    """List the source, sort, cut into shards, and freeze the result below `dataset`.

    A plan that is already there for the same recipe is used again; rows that it lacks are added to it as further
    shards. When rows that are packed differ now, or are gone, or the recipe is another, everything is planned anew,
    with `anew` only. Without `write` nothing is frozen, and the plan has facts alone (revision, shards, rows). Raises
    UserError without `anew`, when the source has nothing to pack, and when it has label maps while the recipe has no
    classes; nothing is left of a plan that failed.
    """
    dataset = Path(dataset)
    if not write:
        return _make_plan(recipe, dataset, anew, write)
    plans = dataset / "plans"
    new = [folder for folder in (plans, dataset) if not folder.exists()]
    plans.mkdir(parents=True, exist_ok=True)
    try:
        return _make_plan(recipe, dataset, anew, write)
    except BaseException:
        for folder in new:
            with suppress(OSError):  # not empty: somebody else plans too
                folder.rmdir()
        raise


def _make_plan(recipe: Recipe, dataset: Path, anew: bool, write: bool) -> Plan:
    plans = dataset / "plans"
    if write:
        _remove_abandoned(plans)
    removed = frozenset(item.id_sha256 for item in read_removed(dataset))
    with tempfile.TemporaryDirectory(prefix=".making.", dir=plans if write else None) as scratch:
        listing = Listing(recipe, Path(scratch), removed)
        splitter = Splitter(recipe)
        listing.fill(splitter.assign(entries_of(recipe.source)))
        fields = recipe.packed_fields(listing.fields)
        settings = {
            "recipe": recipe.resolved(),
            "source_version": version_of(recipe.source.kind),
            "packer_version": packer_version(fields),
            "fields": fields,
            "detector": None if recipe.blur is None else recipe.blur.detector.digest(),
        }
        keep = _keep if write else _leave
        content = _grown(recipe, dataset, settings, listing, Path(scratch), keep)
        content = content or _fresh(recipe, dataset, settings, listing, Path(scratch), anew, keep)
        folder = plan_folder(dataset, content["revision"])
        lines = "".join(listing.rejected()).encode("ascii")
    # What split files say is in the rows; that they exist is no setting, so that they may grow with the source.
    content |= _place(recipe) | {"split_files": splitter.files, "split_rows": splitter.rows}
    files = ((folder / "rejected.jsonl", lines), (folder / "plan.json", json_bytes(content)))
    for path, data in files if write else ():
        if not path.exists() or path.read_bytes() != data:
            write_atomic(path, data)
    return Plan(dataset, content)


Keep = Callable[[Path, Path], None]
"""Puts a file of lines that was made into its place."""


def packer_version(fields: Collection[str]) -> int:
    """The version that shards with these fields are made by: the last that gives them other bytes."""
    return PACKER_VERSION if "caption" in fields else 2


def plan_folder(dataset: Path, revision: str) -> Path:
    """Where a plan lies."""
    return dataset / "plans" / revision


def _parse(line: bytes) -> list[PlanRow]:
    return [PlanRow(key, Entry(*entry) if entry else None) for key, *entry in json.loads(line)]


def _place(recipe: Recipe) -> dict[str, Any]:
    """Where the source lies now: kept for packing, no property of the dataset."""
    root = getattr(recipe.source, "root", None)
    detector = None if recipe.blur is None else recipe.blur.detector.path
    return {
        "detector_path": None if detector is None else str(Path(detector).resolve()),
        "root": None if root is None else str(Path(root).resolve()),
        "link_roots": [str(Path(folder).resolve()) for folder in getattr(recipe.source, "link_roots", ())],
    }


def _grown(
    recipe: Recipe, dataset: Path, settings: dict[str, Any], listing: Listing, scratch: Path, keep: Keep
) -> dict[str, Any] | None:
    """The content of an earlier plan with the same settings, and with what is new; None when none fits."""
    for plan in _earlier(dataset, settings):
        found = scratch / "part.jsonl"
        found.unlink(missing_ok=True)
        part, digest = _cut(listing.rows(plan.all_rows()), recipe, found)
        if listing.changed or listing.gone:
            continue
        content = dict(plan.content)
        if part["rows"]:
            part["file"] = f"part-{digest[:10]}.jsonl"
            keep(found, plan_folder(dataset, plan.revision) / part["file"])
            content["parts"] = [*content["parts"], part]
        return content | _counts(content["parts"], listing)
    return None


def _earlier(dataset: Path, settings: dict[str, Any]) -> Iterator[Plan]:
    """Plans with these settings, the one that the dataset uses first.

    Those of version 2 count: what was packed before captions were scalars grows as it is, rather than being read anew.
    """
    used = current(dataset, BASE)
    versions = (2, settings["packer_version"])
    for path in sorted((dataset / "plans").glob("*/plan.json"), key=lambda path: path.parent.name != used):
        with suppress(UserError):  # damaged, or of another format: planned anew
            content = read_json(path)
            check_format(content, path)
            same = all(content.get(name) == settings[name] for name in SETTINGS if name != "packer_version")
            if same and content.get("packer_version") in versions:
                yield Plan(dataset, content)


def _fresh(
    recipe: Recipe,
    dataset: Path,
    settings: dict[str, Any],
    listing: Listing,
    scratch: Path,
    anew: bool,
    keep: Keep,
) -> dict[str, Any]:
    """The content of a plan of all rows. Raises UserError when another one is in use and it is not to be `anew`."""
    found = scratch / "plan.jsonl"
    part, digest = _cut(listing.rows(), recipe, found)
    _check(recipe, listing, part["rows"])
    revision = hashlib.sha256(f"{canonical(settings)}\n{digest}".encode()).hexdigest()[:10]
    if not anew and (used := in_use(dataset)) not in (None, revision):
        raise refusal(dataset, _readable(dataset, str(used)), settings, listing)
    part["file"] = "plan.jsonl"
    keep(found, plan_folder(dataset, revision) / "plan.jsonl")
    return {"format": FORMAT, "revision": revision, **settings, "parts": [part]} | _counts([part], listing)


def _readable(dataset: Path, revision: str) -> Plan | None:
    try:
        return Plan.open(dataset, revision)
    except UserError:
        return None


def _counts(parts: list[dict[str, Any]], listing: Listing) -> dict[str, Any]:
    return {
        "parts": parts,
        "shards": sum(len(part["offsets"]) for part in parts),
        "rows": sum(part["rows"] for part in parts),
        # Rows that were taken down are rows still, also when their files are gone.
        "files_seen": listing.seen + listing.absent_removed,
        "rejected": listing.counts(),
    }


def _keep(made: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    made.rename(target)
    fsync_folder(target.parent)


def _leave(made: Path, target: Path) -> None:
    """Instead of `_keep`, where nothing is to be written."""


def _check(recipe: Recipe, listing: Listing, rows: int) -> None:
    if not rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in listing.counts().items())
        raise UserError(
            f"{recipe.name}: nothing to pack: {listing.seen} picture files seen, rejected: {counts or 'none'}"
        )
    if "label" in listing.fields and not recipe.classes:
        raise UserError(
            f"{recipe.name}: the source has label maps but the recipe has no classes; add [[classes]] with name and "
            "color for each id"
        )


def _cut(rows: Iterable[PlanRow], recipe: Recipe, path: Path) -> tuple[dict[str, Any], str]:
    """Write one line a shard; returns rows and the offsets of the lines, and the digest of the file."""
    offsets: list[int] = []
    total = 0
    digest = hashlib.sha256()
    position = 0
    with path.open("xb") as file:
        for shard in _shards(rows, recipe.shard_rows, recipe.shard_mb * 1e6):
            line = (canonical([[row.key, *(row.entry or ())] for row in shard]) + "\n").encode()
            offsets.append(position)
            position += file.write(line)
            digest.update(line)
            total += len(shard)
    return {"rows": total, "offsets": offsets}, digest.hexdigest()


def _shards(rows: Iterable[PlanRow], most_rows: int, most_bytes: float) -> Iterator[list[PlanRow]]:
    shard: list[PlanRow] = []
    size = 0
    for row in rows:
        more = sum(row.entry.sizes.values()) if row.entry else 0
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
