"""What the dead leave in a dataset: temporary files, leases, receipts of another state, plans half made.

Login-node code: standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from semiocity.data.layout import COUNTS, GALLERY, GATHERED, IMPORTS
from semiocity.data.lease import STALE_S
from semiocity.data.manifest import named_files

GRACE_S = 86_400.0
"""What has changed more recently may be somebody's work."""

TEMPORARY = re.compile(r"\..*\.tmp|\.making\..*|\.gone\..*")
COMPACTED = re.compile(r"(receipts|rejected)\.\d{5}\..*")


def leftovers(dataset: Path, grace_s: float = GRACE_S) -> Iterator[Path]:
    """Files and folders below a dataset that nobody will use, and that nobody has touched for `grace_s` seconds."""
    dataset = Path(dataset)
    folders = [dataset, dataset / "plans", *dataset.glob("plans/*/"), dataset / "columns", *dataset.glob("columns/*/")]
    for folder in sorted({*folders, *dataset.glob("views/*/"), *dataset.glob("views/*/*/")}):
        yield from (path for path in _listed(folder) if TEMPORARY.fullmatch(path.name) and old(path, grace_s))
    for folder in (dataset / IMPORTS, dataset / COUNTS, dataset / GALLERY):
        for path in _listed(folder, TEMPORARY.fullmatch):
            # A folder's time says little where one file in it is written for long.
            if old(path, max(grace_s, GRACE_S)):
                yield path
    for revision in sorted(dataset.glob("columns/*/*/")):
        if revision.name.startswith("."):
            continue
        named = named_files(revision)
        for path in _listed(revision):
            unnamed = COMPACTED.fullmatch(path.name) and named and path not in named
            if (unnamed or TEMPORARY.fullmatch(path.name)) and old(path, grace_s):
                yield path
            elif path.name == GATHERED and old(path, max(grace_s, GRACE_S)):
                yield path  # its job may wait in a queue: younger ones are not for `repair`
        for thousand in sorted(revision.glob("[0-9]" * 5)):
            for path in _listed(thousand, lambda name: name.endswith(".lease") or name.startswith(".")):
                dead = path.suffix == ".lease" or TEMPORARY.fullmatch(path.name)
                if dead and old(path, max(grace_s, STALE_S)):
                    yield path


def leased(revision: Path) -> bool:
    """Whether somebody works on a shard of a column's revision, or did minutes ago."""
    return any(
        not old(path, STALE_S)
        for thousand in revision.glob("[0-9]" * 5)
        for path in _listed(thousand, lambda name: name.endswith(".lease"))
    )


def old(path: Path, age_s: float) -> bool:
    """Whether nothing has happened to a file, or in a folder, for so long."""
    try:
        # Not the modification time: that of compacted receipts says something else.
        return time.time() - path.stat().st_ctime > age_s
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it: it vanishes under its name at once, then bit by bit."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = path if path.name.startswith(".gone.") else path.with_name(f".gone.{path.name}.{time.time_ns():x}")
    if gone != path:
        path.rename(gone)
    shutil.rmtree(gone)


def _listed(folder: Path, wanted: Callable[[str], object] = lambda name: True) -> list[Path]:
    try:
        # A Path is made for few of the names: a folder may have thousands.
        return [folder / name for name in sorted(filter(wanted, os.listdir(folder)))]  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
