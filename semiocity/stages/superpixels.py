"""Regions of a picture without a model: SLIC cells joined along their adjacency graph until they are object-sized.

Cells: Achanta et al. 2012, "SLIC superpixels compared to state-of-the-art superpixel methods", TPAMI 34(11), as in
scikit-image. Joining: Ward's criterion (1963) restricted to neighbours.
"""

from __future__ import annotations

import heapq
from math import sqrt

import numpy as np
from skimage.color import rgb2lab
from skimage.segmentation import slic
from skimage.transform import resize

WORKING_SIZE = 512
"""Pixels of the longer side at which cells are cut; larger pictures are shrunk first, their regions enlarged again."""
CELL_PIXELS = 24
"""No more cells than the picture has times this many pixels."""


def regions(pixels: np.ndarray, cells: int, compactness: float, most: int, join: float) -> np.ndarray:
    """Region numbers from 0, int32 [H, W], for a picture, uint8 [H, W, 3]. Every region is connected.

    `cells` and `compactness` are SLIC's. Regions are joined until at most `most` are left, and further while the
    cheapest join costs no more than `join` (see `join_regions`).
    """
    height, width = pixels.shape[:2]
    scale = WORKING_SIZE / max(height, width)
    small = pixels.astype(np.float64) / 255
    if scale < 1:
        small = resize(
            small, (max(1, round(height * scale)), max(1, round(width * scale))), order=1, anti_aliasing=True
        )
    count = max(1, min(cells, small.shape[0] * small.shape[1] // CELL_PIXELS))
    # SLIC stretches its input to the range 0 to 1, so it is given colours and converts them itself.
    found = slic(small, count, compactness=compactness, sigma=0.5, start_label=0, enforce_connectivity=True)
    joined = join_regions(found, rgb2lab(small) / 100, most, join)
    if scale < 1:
        rows = np.minimum(((np.arange(height) + 0.5) * joined.shape[0] / height).astype(int), joined.shape[0] - 1)
        columns = np.minimum(((np.arange(width) + 0.5) * joined.shape[1] / width).astype(int), joined.shape[1] - 1)
        joined = joined[rows[:, None], columns]
    return joined


def join_regions(cells: np.ndarray, colour: np.ndarray, most: int, join: float) -> np.ndarray:
    """Join neighbouring cells, cheapest pair first; returns region numbers from 0, int32 [H, W].

    The cost of joining regions of areas a and b (as shares of the picture) with mean colours p and q is
    sqrt(2ab/(a+b)) · |p − q|: the growth of the colours' spread, so small regions go first and large ones hold out
    while they differ. It does not depend on the picture's size.
    """
    number = int(cells.max()) + 1
    area = np.bincount(cells.ravel(), minlength=number) / cells.size
    mean = np.stack(
        [np.bincount(cells.ravel(), weights=c.ravel(), minlength=number) for c in np.moveaxis(colour, 2, 0)], 1
    )
    sums = (mean / cells.size).tolist()
    areas: list[float] = area.tolist()
    neighbours = _neighbours(cells, number)
    parent = list(range(number))
    alive = number - areas.count(0.0)

    def cost(a: int, b: int) -> float:
        distance = sum((x / areas[a] - y / areas[b]) ** 2 for x, y in zip(sums[a], sums[b], strict=True))
        return sqrt(2 * areas[a] * areas[b] / (areas[a] + areas[b]) * distance)

    # A region gets a new number when it grows, so that entries of the heap that speak of its former self are known.
    heap = [(cost(a, b), a, b) for a in range(number) for b in neighbours[a] if a < b]
    heapq.heapify(heap)
    while heap:
        price, a, b = heapq.heappop(heap)
        if parent[a] != a or parent[b] != b:
            continue
        if alive <= most and price > join:
            break
        new = len(parent)
        parent.append(new)
        parent[a] = parent[b] = new
        areas.append(areas[a] + areas[b])
        sums.append([x + y for x, y in zip(sums[a], sums[b], strict=True)])
        around = (neighbours[a] | neighbours[b]) - {a, b}
        neighbours.append(around)
        for other in sorted(around):
            neighbours[other] -= {a, b}
            neighbours[other].add(new)
            heapq.heappush(heap, (cost(other, new), other, new))
        alive -= 1
    root = list(range(len(parent)))
    for node in reversed(range(len(parent))):
        root[node] = node if parent[node] == node else root[parent[node]]
    _, compact = np.unique(np.array(root[:number])[cells], return_inverse=True)
    return compact.reshape(cells.shape).astype(np.int32)


def _neighbours(cells: np.ndarray, number: int) -> list[set[int]]:
    """For each cell, the cells that share an edge with it."""
    pairs = np.concatenate(
        [
            np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()], 1),
            np.stack([cells[:-1].ravel(), cells[1:].ravel()], 1),
        ]
    )
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    found: list[set[int]] = [set() for _ in range(number)]
    for a, b in pairs.tolist():
        found[a].add(b)
        found[b].add(a)
    return found
