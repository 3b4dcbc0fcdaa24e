"""Orders and buckets made up for the tests."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semiocity.data.order import Order


@dataclass
class MadeBuckets:
    """Buckets from a list of ids a shard; counts how often a shard was asked for."""

    ids: list[NDArray[np.int64]]
    count: int
    asked: int = 0

    @property
    def bucket_sizes(self) -> list[tuple[int, int]]:
        return [(8 * (i + 1), 8) for i in range(self.count)]

    @property
    def bucket_counts(self) -> NDArray[np.int64]:
        return np.stack([np.bincount(ids, minlength=self.count) for ids in self.ids])

    def buckets_of(self, shard: int) -> NDArray[np.int64]:
        self.asked += 1
        return self.ids[shard]


def made_order(
    sizes: list[int],
    seed: int,
    global_batch: int,
    window: int = 4,
    tail: str = "drop",
    buckets: int = 0,
    view: str = "v",
) -> Order:
    """An order; with `buckets`, rows are spread over them unevenly and by the seed."""
    made = None
    if buckets:
        draw = np.random.default_rng(seed % 2**32)
        ids = [np.minimum(draw.geometric(0.5, size) - 1, buckets - 1) for size in sizes]
        made = MadeBuckets(ids, buckets)
    return Order(view, tuple(sizes), seed, global_batch, window, tail, made)  # type: ignore[arg-type]


def random_order(chance: random.Random, buckets: bool | None = None) -> Order:
    """Any order that is possible; `buckets` None: with or without."""
    sizes = [chance.choice([0, 1, chance.randrange(30)]) for _ in range(chance.randrange(1, 12))]
    rows = sum(sizes)
    if rows == 0:
        sizes, rows = [*sizes, 3], 3
    wanted = chance.randrange(2) if buckets is None else buckets
    return made_order(
        sizes,
        seed=chance.randrange(2**63),
        global_batch=chance.randrange(1, rows + 1),
        window=chance.randrange(1, 6),
        # Dropping may leave nothing when buckets are smaller than a batch.
        tail="pad" if wanted else chance.choice(["drop", "pad"]),
        buckets=chance.randrange(1, 6) if wanted else 0,
        view=f"view {chance.randrange(9)}",
    )
