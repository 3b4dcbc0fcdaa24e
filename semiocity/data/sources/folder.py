"""Any folder of pictures, with label maps, instance maps and captions beside them or in parallel folders.

Beside: `street/a.jpg` has `street/a.label.png`, `street/a.instance.png`, `street/a.txt`.
Parallel, with `labels = "gt"`: `street/a.jpg` has `gt/street/a.png`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from semiocity.data.keys import fraction_of, printable
from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.files import Found, check_no_link, check_root, split_name, walk
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image",)
CLASSES = None
IGNORE_ID = None

SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class FolderSource(FileSource):
    """Pictures anywhere below a folder."""

    kind: Literal["folder"] = "folder"
    labels: str | None = None
    """Folder below root with label maps, at the pictures' relative names with .png; None looks for NAME.label.png."""
    instances: str | None = None
    """The same for instance maps; None looks for NAME.instance.png."""
    captions: str | None = None
    """The same for captions, .txt; None looks for NAME.txt."""
    split_by: Literal["fraction", "folder"] = "fraction"
    """fraction: `val_fraction` of the pictures, chosen by a hash of their names, are val and the others train.
    folder: a picture's first folder names its split (train for those directly in root)."""
    val_fraction: float = Field(0.0, ge=0.0, lt=1.0)

    @field_validator("labels", "instances", "captions")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith("/") or ".." in value.split("/")):
            raise ValueError("a folder below source.root is expected, such as labels")
        return None if value is None else value.strip("/")


def entries(source: FolderSource) -> Iterator[Entry | Rejection]:
    """One entry a picture. Raises UserError when root or a parallel folder is none, or a split has no usable name."""
    root = check_root(source.root)
    parallel = {"label": source.labels, "instance": source.instances, "caption": source.captions}
    for name in filter(None, parallel.values()):
        if not (root / name).is_dir():
            raise UserError(f"source: {root / name} is no folder")
        check_no_link(root, name)
    extension = {"label": "png", "instance": "png", "caption": "txt"}
    companions: dict[tuple[str, str], Found] = {}
    pictures: list[Found] = []
    for found in walk(root, also=source.link_roots):
        place = _companion(found, parallel, extension)
        if place is not None:
            companions[place] = found
        elif found.is_picture:
            pictures.append(found)
    for found in pictures:
        if found.problem:
            yield found.problem
            continue
        files, sizes = {"image": found.name}, {"image": found.size}
        for field in parallel:
            beside = companions.get((field, found.stem))
            if beside is not None and beside.problem is None:
                files[field], sizes[field] = beside.name, beside.size
        yield Entry(found.stem, files, sizes, _split(source, found.stem))


def _companion(found: Found, parallel: dict[str, str | None], extension: dict[str, str]) -> tuple[str, str] | None:
    """(field, id of the picture) when the file belongs to a picture; ("", name) for others in a parallel folder."""
    for field, folder in parallel.items():
        if folder is not None and found.name.startswith(folder + "/"):
            inside = found.stem[len(folder) + 1 :]
            return (field, inside) if found.extension == extension[field] else ("", found.name)
    if found.extension == "png":
        stem, kind = split_name(found.stem)
        if kind in ("label", "instance") and parallel[kind] is None:
            return kind, stem
    if found.extension == "txt" and parallel["caption"] is None:
        return "caption", found.stem
    return None


def _split(source: FolderSource, id: str) -> str:
    if source.split_by == "fraction":
        return "val" if fraction_of(id, "split") < source.val_fraction else "train"
    first, slash, _ = id.partition("/")
    if not slash:
        return "train"
    if not SPLIT_NAME.fullmatch(first):
        raise UserError(
            f'source.split_by = "folder": {printable(first)!r} cannot name a split (letters, digits, _ and -); '
            'rename the folder or use split_by = "fraction"'
        )
    return first
