"""Clusters that are stars: a leader, and those near it. Items have a rank and a level; nearness is not transitive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from semiocity.data.hamming import Near, Neighbours, blocks
from semiocity.errors import Stopped

Stop = Callable[[], bool]

TIDY = 64
"""Leaders of a crowd between two times that those who have found theirs are no longer asked."""


def check_stop(stop: Stop) -> None:
    """Raises Stopped when `stop` says so."""
    if stop():
        raise Stopped


def leaders(level: np.ndarray, found: Neighbours, near: Near, distance: Near, stop: Stop) -> np.ndarray:
    """The leader of each of N items, itself if it leads; int64 [N].

    Items are numbered by rank, and `level` [N] ascends. Level after level: an item near one of a lower level joins its
    leader (of several that of the lowest level, then of the nearest, then of the first). Of the rest, in rank order,
    whoever is left leads and takes everyone left who is near itself. `found` holds the near pairs as `neighbours` gives
    them; those of two crowded items are had by comparing, but only leaders and items of lower levels are compared.
    """
    leader = np.full(len(level), -1, dtype=np.int64)
    for now in np.unique(level):
        _join(now, level, leader, found, near, distance, stop)
        _lead(np.flatnonzero((level == now) & (leader < 0)), leader, found, near, stop)
    return leader


def _join(
    now: int, level: np.ndarray, leader: np.ndarray, found: Neighbours, near: Near, distance: Near, stop: Stop
) -> None:
    """Items of level `now` that are near one of a lower level get its leader."""

    def best(pairs: np.ndarray) -> np.ndarray:
        """Of the pairs (item, other) the best of each item."""
        items, others = pairs.T
        order = np.lexsort((others, distance(items, others), level[leader[others]], items))
        items = items[order]
        return pairs[order][np.r_[True, items[1:] != items[:-1]][: len(items)]]

    first, second = found.pairs.T
    listed = found.pairs[(level[second] == now) & (level[first] < now)][:, ::-1]
    options = [best(listed)]
    crowd, others = (np.flatnonzero(found.crowded & at) for at in (level == now, level < now))
    for pairs in blocks(near, crowd, others):
        check_stop(stop)
        options.append(best(pairs))
    chosen = best(np.concatenate(options))
    leader[chosen[:, 0]] = leader[chosen[:, 1]]


def _lead(items: np.ndarray, leader: np.ndarray, found: Neighbours, near: Near, stop: Stop) -> None:
    """Leaders among `items`, ascending, all of one level and left over."""
    ours = np.zeros(len(leader), dtype=bool)
    ours[items] = True
    pairs = found.pairs[ours[found.pairs].all(axis=1)]
    pairs = pairs[np.argsort(pairs[:, 0])]
    first, second = pairs.T
    pool = items[found.crowded[items]]
    busy = np.union1d(first, pool)
    asked = 0
    for i, start, end in zip(busy, np.searchsorted(first, busy), np.searchsorted(first, busy, "right"), strict=True):
        if leader[i] >= 0:
            continue
        leader[i] = i
        listed = second[start:end]
        leader[listed[leader[listed] < 0]] = i
        if found.crowded[i]:
            taken = pool[near(np.array([i]), pool)]
            leader[taken[leader[taken] < 0]] = i
            asked += 1
            if asked % TIDY == 0:
                check_stop(stop)
                pool = pool[leader[pool] < 0]
    alone = items[leader[items] < 0]  # nobody is near them but whom others have taken
    leader[alone] = alone
