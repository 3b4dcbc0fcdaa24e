"""Pairs of 64-bit hashes that differ in few bits, among millions of them.

Multi-index hashing (Norouzi, Punjani, Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing"), in the form
that needs equality only: cut the bits into `distance` + `agree` bands; hashes that differ in at most `distance` bits
agree in at least `agree` whole bands. So for each choice of `agree` bands the hashes are sorted by them, and only those
with equal bits are compared. Nothing is missed and nothing found that is not near.

Sets as they are have crowds: hashes by the ten thousand in one bucket, whose pairs nobody can list. Pairs between two
members of crowded buckets are left to the caller, who knows how to do without most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

BITS = 64
CROWD = 64
"""Larger buckets are crowded; larger still where chance alone fills them so far."""
_MIX = np.uint64(0x9E3779B97F4A7C15)

Near = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Whether items i and j, two arrays of numbers that broadcast, are near one another."""


class Neighbours(NamedTuple):
    """Near pairs of items."""

    pairs: np.ndarray
    """int64 [E, 2], i < j, each pair once: all near pairs but for those of two crowded items; of these perhaps some."""
    crowded: np.ndarray
    """bool [N]"""


def differing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of bits in which uint64 values differ."""
    return np.bitwise_count(first ^ second)


def neighbours(hashes: np.ndarray, distance: int, near: Near, threads: int = 1, crowd: int = CROWD) -> Neighbours:
    """Pairs that differ in at most `distance` bits and for which `near(i, j)` holds too.

    hashes: uint64 [N]. Time grows as N and as the pairs that share a bucket; memory is some 60 bytes an item and
    thread, and 16 a pair found. `crowd` is the smallest number of items that may count as a crowd.
    """
    bands = choose_bands(len(hashes), distance)
    chance = len(hashes) / 2.0 ** (BITS * bands.agree / bands.total)
    limit = max(crowd, int(8 * chance))
    crowded = np.zeros(len(hashes), dtype=bool)

    def search(choice: tuple[int, ...]) -> np.ndarray:
        found, crowds = _search(hashes, bands, choice, distance, near, limit)
        crowded[crowds] = True  # only ever set: threads do not get into one another's way
        return found

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(search, combinations(range(bands.total), bands.agree)))
    return Neighbours(np.concatenate([np.empty((0, 2), dtype=np.int64), *parts]), crowded)


class Bands(NamedTuple):
    """How bits are cut: band b holds the bits i with i % total == b, so that no band is one corner of a picture."""

    total: int
    agree: int
    """Bands in which near hashes surely agree."""

    def masks(self) -> np.ndarray:
        """uint64 [total]"""
        bits = range(BITS)
        return np.array([sum(1 << i for i in bits if i % self.total == b) for b in range(self.total)], dtype=np.uint64)


def choose_bands(items: int, distance: int) -> Bands:
    """The cheapest cut: few choices of bands that are still so many bits that buckets stay small."""
    options = [Bands(distance + agree, agree) for agree in range(1, 6) if distance + agree <= BITS]

    def cost(bands: Bands) -> float:
        chance = items / 2.0 ** (BITS * bands.agree / bands.total)
        return comb(bands.total, bands.agree) * (5 + chance / 2)  # sorting an item costs as much as comparing five

    return min(options, key=cost)


def _search(
    hashes: np.ndarray, bands: Bands, choice: tuple[int, ...], distance: int, near: Near, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Near pairs within the buckets of one choice of bands, and the items of crowded buckets."""
    masks = bands.masks()
    order, sizes, place = _buckets(hashes & np.bitwise_or.reduce(masks[list(choice)]))
    crowds = order[sizes > limit]
    inside = (sizes > 1) & (sizes <= limit)
    order, behind = order[inside], (sizes - place - 1)[inside]
    values = hashes[order]
    found = []
    at = np.flatnonzero(behind)
    for step in range(1, limit):
        at = at[behind[at] >= step]
        if not len(at):
            break
        bits = values[at] ^ values[at + step]
        close = np.bitwise_count(bits) <= distance
        first, bits = at[close], bits[close]
        own = _first_choice(bits, masks, choice)  # equal in other bands too: found once for each choice, kept once
        first = first[own]
        i, j = order[first], order[first + step]
        real = near(i, j)
        found.append(np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1)[real])
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *found]), crowds


def _buckets(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items in an order that puts equal words side by side; for each its bucket's size and its place therein.

    One plain sort of word and number in 64 bits, several times faster than sorting numbers by words. The word is hashed
    to the bits that are left: unequal words that meet are one larger bucket, and comparing parts them.
    """
    low = max(1, int(len(words) - 1).bit_length())
    packed = ((words * _MIX) >> np.uint64(low)) << np.uint64(low) | np.arange(len(words), dtype=np.uint64)
    packed.sort()
    order = (packed & np.uint64((1 << low) - 1)).astype(np.int64)
    packed >>= np.uint64(low)
    starts = np.flatnonzero(np.r_[True, packed[1:] != packed[:-1]][: len(words)])
    sizes = np.diff(np.r_[starts, len(words)])
    return order, np.repeat(sizes, sizes), np.arange(len(words)) - np.repeat(starts, sizes)


def _first_choice(bits: np.ndarray, masks: np.ndarray, choice: tuple[int, ...]) -> np.ndarray:
    """Whether `choice` is the first, in lexicographic order, of all choices in which a pair agrees.

    bits: uint64 [M], where the pair differs. That is so when no band before the last chosen one agrees but the chosen.
    """
    others = [band for band in range(choice[-1]) if band not in choice]
    first = np.ones(len(bits), dtype=bool)
    for band in others:
        first &= (bits & masks[band]) != 0
    return first


def blocks(near: Near, rows: np.ndarray, others: np.ndarray, cells: int = 1 << 22) -> Iterator[np.ndarray]:
    """Near pairs (row, other) by comparing all with all, int64 [E, 2] at a time; `cells` comparisons at a time."""
    step = max(1, cells // max(1, len(others)))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        i, j = np.nonzero(near(part[:, None], others[None, :]))
        yield np.stack([part[i], others[j]], axis=1)
