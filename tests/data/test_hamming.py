"""Pairs of hashes within a distance: those that comparing all with all finds, each once."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import dice

from semiocity.data.hamming import Neighbours, blocks, choose_bands, differing, neighbours


def seeded() -> np.random.Generator:
    return np.random.default_rng(dice().randrange(2**32))


def clumped(random: np.random.Generator, items: int, centres: int, flips: int) -> np.ndarray:
    """Hashes that lie within `flips` bits of one of a few."""
    hashes = random.choice(random.integers(0, 2**64, max(1, centres), dtype=np.uint64), items)
    for _ in range(flips):
        bit = np.uint64(1) << random.integers(0, 64, items, dtype=np.uint64)
        hashes = np.where(random.random(items) < 0.5, hashes ^ bit, hashes)
    return hashes


def all_pairs(hashes: np.ndarray, distance: int, other: np.ndarray, most: int) -> set[tuple[int, int]]:
    near = (differing(hashes[:, None], hashes) <= distance) & (differing(other[:, None], other) <= most)
    return set(zip(*(part.tolist() for part in np.nonzero(np.triu(near, 1))), strict=True))


@pytest.mark.parametrize(("items", "distance"), [(0, 8), (1, 8), (2, 0), (300, 0), (700, 3), (700, 8), (700, 16)])
def test_the_pairs_are_those_of_brute_force(items: int, distance: int) -> None:
    random = seeded()
    hashes, other = clumped(random, items, items // 5, 12), random.integers(0, 2**64, items, dtype=np.uint64)
    found = neighbours(hashes, distance, lambda i, j: differing(other[i], other[j]) <= 33, threads=2)
    pairs = [tuple(pair) for pair in found.pairs.tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == all_pairs(hashes, distance, other, 33)
    assert not found.crowded.any()


@pytest.mark.parametrize("agree", [1, 2, 3, 4])
def test_no_way_to_cut_the_bits_misses_a_pair(agree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from semiocity.data import hamming

    monkeypatch.setattr(hamming, "choose_bands", lambda items, distance: hamming.Bands(distance + agree, agree))
    random = seeded()
    hashes = clumped(random, 500, 60, 14)
    found = neighbours(hashes, 7, lambda i, j: np.ones(len(i), bool))
    assert {tuple(pair) for pair in found.pairs.tolist()} == all_pairs(hashes, 7, hashes, 64)


def test_only_pairs_of_two_crowded_items_may_be_left_out() -> None:
    random = seeded()
    hashes = np.concatenate([clumped(random, 400, 2, 10), clumped(random, 400, 100, 10)])

    def always(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.ones(len(i), bool)

    found = neighbours(hashes, 6, always, crowd=8)
    pairs, wanted = {tuple(pair) for pair in found.pairs.tolist()}, all_pairs(hashes, 6, hashes, 64)
    assert pairs <= wanted and len(pairs) < len(wanted)
    assert all(found.crowded[i] and found.crowded[j] for i, j in wanted - pairs)
    crowd = np.flatnonzero(found.crowded)
    close = list(blocks(lambda i, j: differing(hashes[i], hashes[j]) <= 6, crowd, crowd, cells=1000))
    assert wanted - pairs <= {tuple(pair) for pair in np.concatenate(close).tolist()}


def test_many_items_are_cut_into_buckets_that_stay_small() -> None:
    for items in (10, 10_000, 1_000_000, 30_000_000):
        bands = choose_bands(items, 8)
        assert bands.total - bands.agree == 8, "near hashes agree in so many bands"
        assert items / 2 ** (64 * bands.agree / bands.total) < 64
        masks = bands.masks()
        assert np.bitwise_or.reduce(masks) == np.uint64(2**64 - 1)
        assert sum(int(mask).bit_count() for mask in masks) == 64


def test_pairs_come_in_one_form() -> None:
    found: Neighbours = neighbours(np.zeros(3, np.uint64), 0, lambda i, j: np.ones(len(i), bool))
    assert found.pairs.dtype == np.int64 and sorted(map(tuple, found.pairs.tolist())) == [(0, 1), (0, 2), (1, 2)]
