"""Which pictures are the same, and what follows from it. Pure numpy: arrays in, arrays out; no files.

The rule, in the order in which it is applied:

1. Rows with equal pixels are one *picture*. It belongs to the most protected split that any of its rows has: held-out
   splits in the order given, then all others alike.
2. A picture is *flat* when its `detail` is below a bound: its hashes are noise. Flat pictures are near one another when
   their mean colours and their deviations all differ by at most 2 grey levels (after rounding), others when `phash`
   and `gradients` both differ in few bits. A flat picture is never near one that is not.
3. Split after split, the most protected first: a picture near one of a more protected split joins its cluster (that of
   the most protected split, then of the nearest picture, then of the first in rank). Of the rest, in rank order
   (largest first, then smallest key), whoever is left becomes the *representative* of a new cluster and takes everyone
   left who is near itself. Nobody is taken because of a member: clusters do not grow along chains.
4. The cluster's split is its representative's; the representative is the row that is kept.

So two kept rows of different splits are never near one another, every row that stays in training is not near any
row that was held out, and no row of another split is kept in a held-out one. A member is near its representative, or,
if it came from a less protected split, near a member that is. Nothing depends on the order of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from semiocity.data.hamming import CROWD, Near, Neighbours, differing, neighbours
from semiocity.data.stars import Stop, check_stop, leaders

FLAT_STEP = 2
"""Grey levels by which the mean colours and deviations of near flat pictures may differ."""


class Limits(NamedTuple):
    """What counts as near. The defaults are measured in docs/duplicates.md."""

    distance: int = 8
    """Bits of `phash` that may differ."""
    gradients: int = 12
    """Bits of `gradients` that may differ."""
    flat: float = 2.0
    """Pictures with less `detail` than this are flat."""


@dataclass(frozen=True)
class Rows:
    """What is known of N rows, ordered by key."""

    keys: np.ndarray
    """bytes [N], ascending"""
    pixels: np.ndarray
    """uint64 [N, 2]: 128 bits of the pixels' sha256."""
    phash: np.ndarray
    """uint64 [N]"""
    gradients: np.ndarray
    """uint64 [N]"""
    detail: np.ndarray
    """float [N]"""
    colour: np.ndarray
    """float [N, 4]: mean red, green and blue, and the deviation; grey levels"""
    area: np.ndarray
    """int [N]: pixels"""
    level: np.ndarray
    """int [N]: 0 is the most protected split"""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Clusters:
    """What was decided on N rows."""

    representative: np.ndarray
    """int64 [N]: row of each row's cluster that is kept."""
    cluster: np.ndarray
    """int64 [N]: 63 bits of the sha256 of the cluster's smallest key. It stays as long as that key does."""
    size: np.ndarray
    """int64 [N]: rows of the cluster"""
    exact: np.ndarray
    """bool [N]: the same pixels as the representative"""
    distance: np.ndarray
    """int64 [N]: bits of `phash` that differ from the representative's; -1 for flat pictures that are not exact"""


def levels(splits: Sequence[str | None], held_out: Sequence[str]) -> np.ndarray:
    """int16 [N]: the place of each split in `held_out`; one more than the last for all others."""
    place = {name: number for number, name in enumerate(held_out)}
    return np.array([place.get(split, len(place)) if split else len(place) for split in splits], dtype=np.int16)


def cluster(rows: Rows, limits: Limits, threads: int = 1, stop: Stop = lambda: False, crowd: int = CROWD) -> Clusters:
    """Apply the rule above. Raises Stopped when `stop` says so; the answer does not depend on `threads` or `crowd`."""
    first, picture = _pictures(rows)
    flat = rows.detail[first] < limits.flat
    hashes = np.stack([rows.phash, rows.gradients], axis=1)[first[~flat]]
    colours = np.rint(rows.colour[first[flat]]).astype(np.int16)

    def of_hashes(codes: np.ndarray, level: np.ndarray) -> np.ndarray:
        return _hash_stars(codes, level, limits, threads, stop, crowd)

    def of_colours(codes: np.ndarray, level: np.ndarray) -> np.ndarray:
        return _flat_stars(codes, level, stop)

    leader = np.empty(len(first), dtype=np.int64)
    for members, codes, solve in ((~flat, hashes, of_hashes), (flat, colours, of_colours)):
        leader[members] = np.flatnonzero(members)[_by_codes(codes, rows.level[first[members]], solve)]
    return _clusters(rows, picture, first[leader[picture]], flat[picture])


def near_hashes(phash: np.ndarray, gradients: np.ndarray, limits: Limits) -> Near:
    """Whether two pictures that are not flat are near one another, by their numbers."""

    def near(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        close = differing(phash[i], phash[j]) <= limits.distance
        some = np.nonzero(close)  # few: the second hash is looked at for these only
        i, j = (numbers[some] for numbers in np.broadcast_arrays(i, j))
        close[some] = differing(gradients[i], gradients[j]) <= limits.gradients
        return close

    return near


def _pictures(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stand for pictures, in rank order, and the number of each row's picture.

    Rank: level, then area from large to small, then key. Rows of one picture have one area.
    """
    rank = np.lexsort((np.arange(len(rows)), -rows.area, rows.level))
    first, picture = _first_of(rows.pixels[rank])
    of_row = np.empty(len(rows), dtype=np.int64)
    of_row[rank] = picture
    return rank[first], of_row


def _first_of(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of equal rows of a table [N, K] the first: numbers, ascending; and for each row which of these it equals."""
    order = np.lexsort((np.arange(len(codes)), *codes.T))
    ordered = codes[order]
    new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)][: len(codes)]
    group = np.cumsum(new) - 1
    firsts = order[new]
    place = np.empty(len(firsts), dtype=np.int64)
    place[np.argsort(firsts)] = np.arange(len(firsts))
    of = np.empty(len(codes), dtype=np.int64)
    of[order] = place[group]
    return np.sort(firsts), of


def _by_codes(
    codes: np.ndarray, level: np.ndarray, solve: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Leaders of items in rank order with the codes [N, K]. Equal codes are near, and near the same others: the first
    item in rank speaks for all that have its code, and `solve` gets one of each."""
    speakers, code = _first_of(codes)
    return speakers[solve(codes[speakers], level[speakers])[code]]


def _hash_stars(
    codes: np.ndarray, level: np.ndarray, limits: Limits, threads: int, stop: Stop, crowd: int
) -> np.ndarray:
    phash, gradients = np.ascontiguousarray(codes[:, 0]), np.ascontiguousarray(codes[:, 1])

    def like(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        check_stop(stop)
        return differing(gradients[i], gradients[j]) <= limits.gradients

    found = neighbours(phash, limits.distance, like, threads, crowd)
    near = near_hashes(phash, gradients, limits)
    return leaders(level, found, near, lambda i, j: differing(phash[i], phash[j]), stop)


def _flat_stars(codes: np.ndarray, level: np.ndarray, stop: Stop) -> np.ndarray:
    def apart(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.abs(codes[i] - codes[j]).max(axis=-1)

    crowd = Neighbours(np.empty((0, 2), dtype=np.int64), np.ones(len(codes), dtype=bool))
    return leaders(level, crowd, lambda i, j: apart(i, j) <= FLAT_STEP, apart, stop)


def _clusters(rows: Rows, picture: np.ndarray, representative: np.ndarray, flat: np.ndarray) -> Clusters:
    _, smallest, number, sizes = np.unique(representative, return_index=True, return_inverse=True, return_counts=True)
    exact = picture == picture[representative]
    distance = differing(rows.phash, rows.phash[representative]).astype(np.int64)
    distance[exact] = 0
    distance[flat & ~exact] = -1
    return Clusters(representative, _names(rows.keys[smallest])[number], sizes[number], exact, distance)


def _names(keys: np.ndarray) -> np.ndarray:
    """63 bits of the sha256 of each key, int64 [N]; of two keys that share them the later gets the next free number."""
    named = [int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1 for key in keys.tolist()]
    names = np.array(named, dtype=np.int64)
    while len(later := np.setdiff1d(np.arange(len(names)), np.unique(names, return_index=True)[1])):
        names[later] += 1
    return names
