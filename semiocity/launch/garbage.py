"""Deleting what nothing refers to: revisions of columns and views, plans, imports, old indexes, leftovers of the dead.

Kept is what a dataset uses now, what a saved view names, what the newest attempt of a run names and older attempts
that are still queued or running, what any of these was made from; and whatever is young or somebody works on.
Standard library only.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semiocity.data.layout import BASE, COUNTS, GALLERY, IMPORTS, gallery_state
from semiocity.data.leftovers import leased, leftovers, old, remove
from semiocity.data.manifest import lineage
from semiocity.data.usage import datasets_at, disk_use
from semiocity.errors import UserError
from semiocity.files import canonical, read_json
from semiocity.launch import squeue
from semiocity.launch.runs import Attempt, alive, all_runs, attempts

Revision = tuple[str, str]
"""Column and revision."""


@dataclass(frozen=True)
class Garbage:
    """Something that can go."""

    path: str
    what: str
    bytes: int
    inodes: int


def show(path: Path, runs: Path, apply: bool, grace_s: float, as_json: bool) -> int:
    """Print what goes, and with `apply` delete it. Exit status 0."""
    found = [item for dataset in datasets_at(path) for item in collect(dataset, runs, apply, grace_s)]
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=1, sort_keys=True))
        return 0
    if not runs.is_dir():
        print(f"note: no folder {runs}/ here, so no run keeps anything; --runs names another")
    for item in found:
        print(f"{item.what}: {item.path} ({item.bytes / 1e6:.1f} MB, {item.inodes} inodes)")
    total = f"{sum(item.bytes for item in found) / 1e6:.1f} MB, {sum(item.inodes for item in found)} inodes"
    end = "deleted" if apply else "to delete; nothing was changed, --apply does it"
    print(f"{path}: {total} {end}" if found else f"{path}: nothing to delete")
    return 0


def collect(dataset: Path, runs: Path, apply: bool = False, grace_s: float = 86_400.0) -> list[Garbage]:
    """What of a dataset can go; with `apply` it has gone. Each is checked again right before it is deleted."""
    dataset = Path(dataset)
    found = []
    for path, what in _candidates(dataset, runs, grace_s):
        item = Garbage(str(path), what, *disk_use(path))
        if apply:
            if what == "revision" and ((path.parent.name, path.name) in _now(dataset) or leased(path)):
                continue
            remove(path)
        found.append(item)
    return found


def _candidates(dataset: Path, runs: Path, grace_s: float) -> Iterator[tuple[Path, str]]:
    wanted = [data | {"made": attempt.file.stat().st_mtime} for attempt, data in _wanting(dataset, runs)]
    named = {revision for data in wanted for revision in _named(dataset, data)}
    kept = _parents(dataset, _now(dataset) | set(_viewed(dataset)) | named)
    revisions = [path for path in sorted(dataset.glob("columns/*/*/")) if not path.name.startswith(".")]
    gone = [
        path
        for path in revisions
        if (path.parent.name, path.name) not in kept and _untouched(path, grace_s) and not leased(path)
    ]
    yield from ((path, "revision") for path in gone)
    bases = {path.name for path in revisions if path.parent.name == BASE and path not in gone}
    bases |= {revision for column, revision in kept if column == BASE}
    for plan in sorted(dataset.glob("plans/*/")):
        if not plan.name.startswith(".") and plan.name not in bases and _untouched(plan, grace_s):
            yield plan, "plan"
    for view in sorted(dataset.glob("views/*/*/")):
        if not view.name.startswith(".") and not _view_wanted(view, wanted) and _untouched(view, grace_s):
            yield view, "view"
    staying = [path for path in revisions if path not in gone]
    imports = {str(_stage_args(path).get("digest")) for path in staying}
    imports |= {str(data["job"].get("args", {}).get("digest")) for data in wanted}
    for path in sorted(dataset.glob(f"{IMPORTS}/*/")):
        if not path.name.startswith(".") and path.name not in imports and _untouched(path, grace_s):
            yield path, "import"
    yield from ((path, "counts") for path in _counts(dataset, wanted) if old(path, grace_s))
    yield from ((path, "gallery") for path in _galleries(dataset) if old(path, grace_s))
    for path in leftovers(dataset, grace_s):
        if not any(folder in path.parents for folder in gone):
            yield path, "leftover"


def _view_wanted(view: Path, wanted: list[dict[str, Any]]) -> bool:
    """Whether a revision of a view is the one in use, or a run builds or reads it."""
    try:
        if read_json(view.parent / "view.json").get("revision") == view.name:
            return True
    except FileNotFoundError:
        pass
    reference = f'"{view.parent.name}@{view.name}"'
    return any(reference in canonical(data["job"]) or data["revision"] == view.name for data in wanted)


def _counts(dataset: Path, wanted: list[dict[str, Any]]) -> Iterator[Path]:
    """Rows counted by aspect bucket that no run's training reads; their names do not say whose they are."""
    if not any((data["job"].get("data") or {}).get("buckets") for data in wanted):
        yield from sorted((dataset / COUNTS).glob("[0-9a-f]*.npy"))


def _galleries(dataset: Path) -> Iterator[Path]:
    """Indexes of the gallery that show another state of the dataset than the present one."""
    with suppress(FileNotFoundError, KeyError):
        now = gallery_state(read_json(dataset / "manifest.json"))
        for path in sorted((dataset / GALLERY).glob("[0-9a-f]*/")):
            if path.name.partition("-")[0] != now:
                yield path


def _untouched(folder: Path, grace_s: float) -> bool:
    """Whether nothing was added to or removed from a revision or a plan for so long."""
    return old(folder, grace_s) and all(old(path, grace_s) for path in folder.iterdir())


def _now(dataset: Path) -> set[Revision]:
    """What the dataset uses: by its pointers, and by its manifest should they differ."""
    found = set()
    for pointer in dataset.glob("columns/*/current.json"):
        found.add((pointer.parent.name, str(read_json(pointer)["revision"])))
    with suppress(FileNotFoundError):
        facts = read_json(dataset / "manifest.json")
        found |= {(name, entry["revision"]) for name, entry in facts["columns"].items()}
    # What corrections by hand were made of stays: its job adds to both when rows are added.
    return {(name, earlier) for name, revision in found for earlier in lineage(dataset, name, revision)}


def _viewed(dataset: Path) -> Iterator[Revision]:
    """What saved views name, those in use and their earlier states."""
    for path in sorted([*dataset.glob("views/*/view.json"), *dataset.glob("views/*/*/view.json")]):
        yield from read_json(path)["columns"].items()


def _wanting(dataset: Path, runs: Path) -> Iterator[tuple[Attempt, dict[str, Any]]]:
    """The attempts at something with the dataset that count."""
    for run in all_runs(runs):
        there = [attempt for attempt in attempts(run) if attempt.file.exists()]
        for attempt in there:
            data = attempt.read()
            same = Path(data["dataset"]).resolve() == dataset.resolve()
            if same and (attempt == there[-1] or _live(data)):
                yield attempt, data


def _named(dataset: Path, data: dict[str, Any]) -> Iterator[Revision]:
    """The revisions of columns that an attempt makes or reads."""
    if data["column"]:
        yield data["column"], data["revision"]
    yield from data.get("columns", {}).items()
    if not data["column"] and "columns" not in data:
        # It does not say what it reads: anything that was there when it was made.
        for manifest in dataset.glob("columns/*/*/manifest.json"):
            if manifest.stat().st_mtime <= data["made"]:
                yield manifest.parts[-3], manifest.parts[-2]


def _live(data: dict[str, Any]) -> bool:
    """Whether some task of an attempt is queued or running; also when nobody can tell."""
    jobs = [job for job in data["jobs"] if job]
    if data["executor"] != "slurm":
        return bool(data["host"] != socket.gethostname() or any(alive(job) for job in jobs))
    try:
        return bool(squeue.states(jobs))
    except UserError:
        return True


def _parents(dataset: Path, kept: set[Revision]) -> set[Revision]:
    """The revisions, and all that they were made from."""
    found, pending = set(kept), list(kept)
    while pending:
        column, revision = pending.pop()
        for parent in _made_from(dataset / "columns" / column / revision):
            if parent not in found:
                found.add(parent)
                pending.append(parent)
    return found


def _made_from(folder: Path) -> list[Revision]:
    parents = _facts(folder).get("parents", {})
    # A manifest names their revisions, a receipt also the bytes.
    return [(name, p if isinstance(p, str) else p["revision"]) for name, p in parents.items()]


def _stage_args(folder: Path) -> dict[str, Any]:
    """The arguments of the stage that makes a revision of a column."""
    args: dict[str, Any] = (_facts(folder).get("stage") or {}).get("args") or {}
    return args


def _facts(folder: Path) -> dict[str, Any]:
    """A column's manifest, or while it is being made one of its receipts; nothing when it has neither."""
    try:
        found: dict[str, Any] = read_json(folder / "manifest.json")
    except FileNotFoundError:
        receipts = (path for thousand in sorted(folder.glob("[0-9]" * 5)) for path in thousand.glob("[0-9]*.json"))
        first = next(receipts, None)
        found = {} if first is None else read_json(first)
    return found
