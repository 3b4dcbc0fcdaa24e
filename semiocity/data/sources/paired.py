"""Datasets with a folder of pictures and parallel folders of what belongs to them, as most datasets of streets have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.files import IMAGE_EXTENSIONS, Found, check_root, walk
from semiocity.errors import UserError


def expect(source: FileSource, folders: Collection[str], layout: str) -> Path:
    """The source's root. Raises UserError, naming the `layout` expected, when it lacks one of `folders`."""
    root = check_root(source.root)
    for folder in folders:
        if not (root / folder).is_dir():
            raise UserError(f"source.root: {root} has no {folder}/; expected is {layout}")
    return root


def paired(
    source: FileSource,
    folder: str,
    split: str,
    parallel: Mapping[str, tuple[str, str]],
    *,
    ending: str = "",
    extensions: Collection[str] = IMAGE_EXTENSIONS,
) -> Iterator[Entry | Rejection]:
    """One entry a picture below `folder`, in order of names.

    `parallel` names for each further field a folder and what its files' names end with: a/b.jpg in `folder` has
    a/bENDING there. `ending` is what the pictures' names without extension end with themselves; it is left out of the
    comparison. Files without a picture's extension (of `extensions`) are no pictures. Listings of the parallel folders
    are held in memory, about 0.5 kB a file.
    """
    beside = {field: _listed(source, *place) for field, place in parallel.items()}
    for found in walk(source.root, folder, also=source.link_roots):
        if not found.is_folder and found.extension not in extensions:
            continue
        if found.problem:
            yield found.problem
            continue
        files, sizes = {"image": found.name}, {"image": found.size}
        name = found.stem[len(folder) + 1 :].removesuffix(ending)
        for field, listed in beside.items():
            if name in listed:
                files[field], sizes[field] = listed[name].name, listed[name].size
        yield Entry(found.stem, files, sizes, split)


def _listed(source: FileSource, folder: str, ending: str) -> dict[str, Found]:
    """The usable files of a parallel folder by their names below it, without the ending."""
    if not (source.root / folder).is_dir():
        return {}
    return {
        found.name[len(folder) + 1 : -len(ending)]: found
        for found in walk(source.root, folder, also=source.link_roots)
        if found.problem is None and found.name.endswith(ending)
    }
