"""What a dataset takes on disk: bytes and inodes of every revision of every column, of plans, views,
imports, what is kept to be quick, and leftovers.

Login-node code: standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semiocity.data.layout import COUNTS, GALLERY, IMPORTS
from semiocity.data.leftovers import leftovers
from semiocity.errors import UserError
from semiocity.files import read_json


@dataclass(frozen=True)
class Usage:
    """What one thing takes."""

    dataset: str
    kind: str
    """column, plan, view, import, counts, gallery, leftover or other"""
    name: str
    revision: str
    current: bool
    """Whether the dataset uses it; true for what has no revisions."""
    bytes: int
    inodes: int


def show(path: Path, as_json: bool) -> int:
    """Print what `path`, a dataset or a folder of datasets, takes."""
    found = [item for dataset in datasets_at(path) for item in usage(dataset)]
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=1, sort_keys=True))
        return 0
    for item in found:
        note = "" if item.current else "  not current"
        name = f"{item.dataset}  {item.kind} {item.name} {item.revision}".rstrip()
        print(f"{_size(item.bytes):>9}  {item.inodes:>9} inodes  {name}{note}")
    total = _size(sum(item.bytes for item in found))
    print(f"{total:>9}  {sum(item.inodes for item in found):>9} inodes  {path}")
    return 0


def datasets_at(path: Path) -> list[Path]:
    """`path` itself when it is a dataset, else those in it. Raises UserError when there is none."""
    path = Path(path)
    if (path / "columns").is_dir():
        return [path]
    found = sorted(folder.parent for folder in path.glob("*/columns/"))
    if not found:
        raise UserError(f"{path}: neither a dataset nor a folder of datasets")
    return found


def usage(dataset: Path) -> Iterator[Usage]:
    """Every part of a dataset once. Sizes are those of the files' contents; folders count as inodes."""
    dead = [str(path) for path in leftovers(dataset)]

    def part(kind: str, name: str, revision: str, current: bool, paths: Iterable[Path]) -> Usage:
        sizes = [disk_use(path, () if kind == "leftover" else dead) for path in paths]
        total = (sum(size for size, _ in sizes), sum(inodes for _, inodes in sizes))
        return Usage(dataset.name, kind, name, revision, current, *total)

    base = _revision(dataset / "columns" / "base")
    for column in sorted(dataset.glob("columns/*/")):
        now = _revision(column)
        for revision in sorted(column.glob("*/")):
            yield part("column", column.name, revision.name, revision.name == now, [revision])
    for plan in sorted(dataset.glob("plans/*/")):
        yield part("plan", "", plan.name, plan.name == base, [plan])
    for view in sorted(dataset.glob("views/*/")):
        yield part("view", view.name, "", True, [view])
    for import_ in sorted(path for path in dataset.glob(f"{IMPORTS}/*/") if not path.name.startswith(".")):
        yield part("import", "", import_.name, import_.name in imported(dataset), [import_])
    for kind, folder in (("counts", COUNTS), ("gallery", GALLERY)):
        if (dataset / folder).is_dir():
            yield part(kind, "", "", True, [dataset / folder])
    named = {"columns", "plans", "views", IMPORTS, COUNTS, GALLERY}
    others = [path for path in sorted(dataset.iterdir()) if path.name not in named]
    others += [path for path in sorted(dataset.glob("*/*/*")) if path.is_file() and path.parts[-3] == "columns"]
    yield part("other", "", "", True, others)
    if dead:
        yield part("leftover", "", "", False, [Path(path) for path in dead])


def imported(dataset: Path) -> set[str]:
    """Digests of the imports that current columns were made from."""
    found = set()
    for column in dataset.glob("columns/*/"):
        with suppress(FileNotFoundError, UserError):
            stage = read_json(column / _revision(column) / "manifest.json").get("stage") or {}
            found.add(str(stage.get("args", {}).get("digest")))
    return found


def disk_use(path: Path, without: Sequence[str] = ()) -> tuple[int, int]:
    """Bytes and inodes of a file, or of a folder and all in it; `without` are paths that do not count."""
    return _count(str(path), frozenset(without))


def _count(path: str, without: frozenset[str]) -> tuple[int, int]:
    if path in without:
        return 0, 0
    try:
        with os.scandir(path) as entries:
            size, inodes = 0, 1
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    more = _count(entry.path, without)
                    size, inodes = size + more[0], inodes + more[1]
                elif not without or entry.path not in without:
                    size, inodes = size + entry.stat(follow_symlinks=False).st_size, inodes + 1
            return size, inodes
    except NotADirectoryError:
        return os.lstat(path).st_size, 1
    except FileNotFoundError:
        return 0, 0


def _revision(column: Path) -> str:
    try:
        pointer: dict[str, Any] = read_json(column / "current.json")
        return str(pointer["revision"])
    except (FileNotFoundError, UserError, KeyError):
        return ""


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
