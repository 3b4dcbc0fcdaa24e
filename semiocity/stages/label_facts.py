"""What a label map says of a picture: what is there, how much of it, where, how many. Numbers only, no words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from skimage.measure import label as connected_components

Side = Literal["left", "centre", "right", "both", "left half", "right half", "across"]
Depth = Literal["near", "far", "middle"]

SPECK = 0.0005
"""Share of the picture below which a region is not mentioned."""
THING = 0.0003
"""The same for one instance: a person far away is small."""
WORKING_SIZE = 512
"""Pixels of the longer side; of larger maps only every second (third, …) row and column is looked at."""


@dataclass(frozen=True)
class Region:
    """All pixels of a class."""

    id: int
    share: float
    """Of the labelled pixels, 0 to 1."""
    side: Side
    top: float
    """Height of the highest tenth of its columns above the bottom, 0 to 1 of the picture's height."""
    pieces: int
    """Connected pieces that are no specks."""


@dataclass(frozen=True)
class Group:
    """The instances of a class."""

    id: int
    count: int
    side: Side
    depth: Depth
    """near when the largest is close to the viewer; far when all are small."""
    on: int | None
    """Class that most of them stand on."""


@dataclass(frozen=True)
class Facts:
    """A picture's regions from large to small, and its groups from many pixels to few."""

    regions: tuple[Region, ...]
    groups: tuple[Group, ...]


def measure(label: np.ndarray, instance: np.ndarray | None, classes: int, ignore_id: int | None) -> Facts:
    """Measure a label map, uint8 [H, W]; `instance` is uint16 [H, W] with 0 for none.

    Ids from `classes` on and the ignore id are left out. An instance belongs to the class that most of its pixels have.
    """
    step = -(-max(label.shape) // WORKING_SIZE)
    label = label[::step, ::step]
    instance = instance[::step, ::step] if instance is not None else None
    known = label < classes
    if ignore_id is not None:
        known &= label != ignore_id
    total = int(known.sum())
    if total == 0:
        return Facts((), ())
    sizes = np.bincount(label[known], minlength=classes)
    regions = [_region(label == c, c, int(sizes[c]), total) for c in range(classes) if sizes[c] >= SPECK * total]
    regions.sort(key=lambda region: (-region.share, region.id))
    groups = _groups(label, instance, known, classes) if instance is not None else []
    return Facts(tuple(regions), tuple(groups))


def shares(label: np.ndarray, classes: int, ignore_id: int | None) -> list[float | None]:
    """Share of each class in the labelled pixels of uint8 [H, W], 0 to 1 with six digits; None where none is labelled.

    Every pixel counts; ids from `classes` on and the ignore id are unlabelled.
    """
    sizes = np.bincount(label.ravel(), minlength=256)[:classes]
    if ignore_id is not None and ignore_id < classes:
        sizes[ignore_id] = 0
    total = int(sizes.sum())
    return [round(int(size) / total, 6) if total else None for size in sizes]


def _region(mask: np.ndarray, id: int, size: int, total: int) -> Region:
    height, width = mask.shape
    thirds = np.array([part.sum() for part in np.array_split(mask, 3, axis=1)], dtype=float) / size
    covered = mask.any(axis=0)
    tops = np.sort(1.0 - mask.argmax(axis=0)[covered] / height)
    pieces = np.bincount(connected_components(mask, connectivity=2).ravel())[1:]
    return Region(
        id=id,
        share=size / total,
        side=side_of(thirds),
        top=float(tops[int(0.9 * (len(tops) - 1))]),
        pieces=int((pieces >= max(2.0, THING * height * width)).sum()),
    )


def side_of(thirds: np.ndarray) -> Side:
    """Where something is, from its shares in the left, middle and right third of the picture (their sum is 1)."""
    left, centre, right = thirds.tolist()
    if max(left, centre, right) >= 0.72:
        return "left" if left >= 0.72 else "right" if right >= 0.72 else "centre"
    if left >= 0.25 and right >= 0.25:
        return "both" if centre < 0.22 else "across"
    return "left half" if left > right else "right half"


def _groups(label: np.ndarray, instance: np.ndarray, known: np.ndarray, classes: int) -> list[Group]:
    height, width = label.shape
    valid = known & (instance > 0)
    ids, compact = np.unique(instance[valid], return_inverse=True)
    if ids.size == 0:
        return []
    votes = np.zeros((ids.size, classes), dtype=np.int64)
    np.add.at(votes, (compact, label[valid]), 1)
    rows, columns = np.nonzero(valid)
    size = votes.sum(axis=1)
    middle = np.bincount(compact, weights=columns + 0.5) / size / width
    bottom = np.zeros(ids.size)
    np.maximum.at(bottom, compact, rows + 1.0)
    stands_on = _ground_below(label, instance, known, ids, classes)
    groups = []
    for c in range(classes):
        members = np.flatnonzero((votes.argmax(axis=1) == c) & (size >= max(2.0, THING * height * width)))
        if members.size == 0:
            continue
        shares = size[members] / (height * width)
        near = (shares >= 0.03) | ((bottom[members] >= 0.93 * height) & (shares >= 0.01))
        thirds = np.bincount(np.minimum((middle[members] * 3).astype(int), 2), minlength=3) / members.size
        below = stands_on[members].sum(axis=0)
        on = int(below.argmax())
        groups.append(
            Group(
                id=c,
                count=int(members.size),
                side=side_of(thirds),
                depth="near" if near.any() else "far" if (shares < 0.004).all() else "middle",
                on=on if below[on] * 2 > members.size else None,
            )
        )
    return sorted(groups, key=lambda group: (-int(size[votes.argmax(axis=1) == group.id].sum()), group.id))


def _ground_below(
    label: np.ndarray, instance: np.ndarray, known: np.ndarray, ids: np.ndarray, classes: int
) -> np.ndarray:
    """[instances, classes] of 0 and 1: the class that an instance's lowest pixels rest on, if there is one.

    Looked at are pixels of another instance or none right below the lowest fifth of the instance.
    """
    found = np.zeros((ids.size, classes), dtype=np.int64)
    for index, id in enumerate(ids.tolist()):
        rows, columns = np.nonzero(instance == id)
        foot = rows.max() - max(1, (rows.max() - rows.min()) // 5)
        rows, columns = rows[rows >= foot] + 1, columns[rows >= foot]
        inside = rows < label.shape[0]
        rows, columns = rows[inside], columns[inside]
        outside = (instance[rows, columns] != id) & known[rows, columns]
        if outside.any():
            below = np.bincount(label[rows[outside], columns[outside]], minlength=classes)
            found[index, below.argmax()] = 1
    return found
