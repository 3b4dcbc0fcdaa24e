"""Regions without a model: what they guarantee, and that they follow what is seen."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from skimage.measure import label as connected_components

from semiocity.data.sources.city import scene
from semiocity.stages.superpixels import join_regions, regions

DEFAULTS: dict[str, Any] = {"cells": 400, "compactness": 10.0, "most": 40, "join": 0.015}


def is_partition_of_connected_regions(found: np.ndarray) -> bool:
    numbers = np.unique(found)
    return numbers.tolist() == list(range(len(numbers))) and all(
        connected_components(found == number, connectivity=1).max() == 1 for number in numbers
    )


@pytest.mark.parametrize("shape", [(64, 64), (33, 90), (8, 8), (1, 5), (600, 40)])
def test_regions_cut_the_whole_picture_into_connected_pieces(shape: tuple[int, int]) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = regions(noise, **DEFAULTS)
    assert found.shape == shape and found.dtype == np.int32
    assert is_partition_of_connected_regions(found)
    assert found.max() < 40


def test_a_plain_picture_is_one_region_and_four_colours_are_four() -> None:
    plain = np.full((64, 80, 3), 90, dtype=np.uint8)
    assert regions(plain, **DEFAULTS).max() == 0
    plain[:32, :40] = (200, 30, 30)
    plain[32:, :40] = (30, 30, 200)
    plain[32:, 40:] = (240, 240, 60)
    found = regions(plain, **DEFAULTS)
    quarters = [
        np.unique(found[rows, columns]).tolist()
        for rows in (slice(0, 29), slice(35, 64))
        for columns in (slice(0, 37), slice(43, 80))
    ]
    assert [len(quarter) for quarter in quarters] == [1, 1, 1, 1]
    assert len({number for quarter in quarters for number in quarter}) == 4


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_regions_of_a_street_are_object_sized_and_follow_its_edges(size: int) -> None:
    made = scene(1, 2, size, size)
    found = regions(made.image, **DEFAULTS)
    assert 12 <= found.max() + 1 <= 40
    # Share of pixels that have the label which most of their region has: 1 if no region crosses an edge.
    agree = sum(np.bincount(made.label[found == number]).max() for number in range(found.max() + 1))
    assert agree / found.size > 0.85


def test_the_same_picture_gives_the_same_regions() -> None:
    image = scene(1, 0, 128, 128).image
    assert np.array_equal(regions(image, **DEFAULTS), regions(image.copy(), **DEFAULTS))


def test_joining_takes_the_cheapest_pair_as_a_plain_search_does() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    random_numbers = np.random.default_rng(seed)
    cells = np.arange(36).reshape(6, 6).repeat(2, 0).repeat(3, 1)
    colour = random_numbers.random((6, 6, 3)).repeat(2, 0).repeat(3, 1)
    for most, join in ((5, 0.0), (36, 0.06)):
        assert same_partition(join_regions(cells, colour, most, join), slow_join(cells, colour, most, join))


def slow_join(cells: np.ndarray, colour: np.ndarray, most: int, join: float) -> np.ndarray:
    """Looks at all pairs of neighbours each time."""
    found = cells.copy()
    while True:
        best = None
        numbers = np.unique(found)
        for a in numbers:
            around = np.zeros(found.shape, dtype=bool)
            inside = found == a
            around[1:] |= inside[:-1]
            around[:-1] |= inside[1:]
            around[:, 1:] |= inside[:, :-1]
            around[:, :-1] |= inside[:, 1:]
            for b in np.unique(found[around & ~inside]):
                p, q = colour[found == a].mean(0), colour[found == b].mean(0)
                x, y = (found == a).mean(), (found == b).mean()
                cost = np.sqrt(2 * x * y / (x + y)) * np.linalg.norm(p - q)
                if best is None or cost < best[0] - 1e-12:
                    best = (cost, a, b)
        if best is None or (len(numbers) <= most and best[0] > join):
            return found
        found[found == best[2]] = best[1]


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = {(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)}
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))
