"""How the tests of exports look at a dataset and at what came out."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from make_images import tree

from semiocity.data.columns import Dataset

FIELDS = ["base.image", "base.label", "base.instance", "base.meta", "caption.text", "mask.rle"]


def ours(dataset: Dataset, *fields: str, split: str | None = None) -> dict[str, dict[str, Any]]:
    """Key → field → value, through our reader."""
    view = dataset.view([*fields, "base.split"], split)
    return {view.key(i): view.read(i) for i in range(len(view))}


def state(out: Path) -> dict[str, bytes]:
    """What a user gets: everything but the records."""
    return {name: data for name, data in tree(out).items() if not name.startswith(".export/")}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o644)
            found[member.name] = file.read()
        return found
