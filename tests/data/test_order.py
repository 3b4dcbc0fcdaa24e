"""Which sample when: every sample once an epoch, in the same global batches on any number of ranks."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from make_images import dice

from semiocity.data.order import Order
from semiocity.errors import UserError


def random_order(chance: random.Random) -> Order:
    sizes = tuple(chance.choice([0, 1, chance.randrange(30)]) for _ in range(chance.randrange(1, 12)))
    rows = sum(sizes)
    if rows == 0:
        sizes, rows = (*sizes, 3), 3
    return Order(
        view=f"view {chance.randrange(9)}",
        shard_sizes=sizes,
        seed=chance.randrange(2**63),
        global_batch=chance.randrange(1, rows + 1),
        window_shards=chance.randrange(1, 6),
        tail=chance.choice(["drop", "pad"]),
    )


def test_every_sample_once_an_epoch() -> None:
    chance = dice()
    for _ in range(100):
        order = random_order(chance)
        epoch = chance.randrange(3)
        seen: Counter[int] = Counter()
        weight = 0.0
        for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
            batch = order.batch(step)
            assert len(batch.rows) == order.global_batch
            assert batch.weights.mean() == pytest.approx(1)
            seen.update(batch.rows[batch.weights > 0].tolist())
            weight += float((batch.weights > 0).sum())
        assert set(seen.values()) <= {1}
        missing = order.rows - len(seen)
        assert missing == (order.left_over if order.tail == "drop" else 0)
        assert weight == len(seen)


def test_resuming_anywhere_gives_the_same_sequence() -> None:
    chance = dice()
    for _ in range(30):
        order = random_order(chance)
        steps = 2 * order.steps_per_epoch + 1
        undisturbed = [order.batch(step).rows.tolist() for step in range(steps)]
        # A new object, as in a new process, asked in any sequence.
        for step in chance.sample(range(steps), min(steps, 5)):
            assert replace(order).batch(step).rows.tolist() == undisturbed[step]


def test_any_number_of_ranks_reads_the_same_global_batches() -> None:
    chance = dice()
    for _ in range(30):
        order = replace(random_order(chance), global_batch=4, tail="pad")
        for step in range(order.steps_per_epoch):
            whole = order.batch(step)
            for world in (1, 2, 4):
                parts = [order.slice_of(step, rank, world) for rank in range(world)]
                for name in ("rows", "places", "weights"):
                    joined = np.concatenate([getattr(part, name) for part in parts])
                    assert joined.tolist() == getattr(whole, name).tolist()
    with pytest.raises(UserError, match="no multiple of the number of ranks"):
        order.slice_of(0, 0, 3)


def test_windows_keep_reading_local() -> None:
    order = Order("v", (10,) * 40, seed=1, global_batch=8, window_shards=4)
    for step in range(order.steps_per_epoch):
        # A batch lies in one window, or on the border of two.
        assert len({row // 10 for row in order.batch(step).rows.tolist()}) <= 8
    window = {row // 10 for step in range(5) for row in order.batch(step).rows.tolist()}
    assert len(window) == 4
    assert window != {0, 1, 2, 3}, "shards are shuffled, too"


def test_epochs_seeds_and_views_differ() -> None:
    order = Order("v", (50, 50), seed=1, global_batch=100)
    first = order.batch(0).rows.tolist()
    others = (order, 1), (replace(order, seed=2), 0), (replace(order, view="w"), 0)
    for other, step in others:
        assert other.batch(step).rows.tolist() != first
    assert sorted(first) == list(range(100))


def test_order_never_changes() -> None:
    """The same rows in every version of this project and of numpy: a run may go on after an upgrade."""
    order = Order("golden", (3, 5, 2), seed=42, global_batch=5, window_shards=2)
    assert [order.batch(step).rows.tolist() for step in range(4)] == [
        [8, 2, 9, 0, 1],
        [5, 3, 6, 4, 7],
        [5, 8, 4, 6, 9],
        [7, 3, 0, 1, 2],
    ]
    assert order.digest == "98226cb931b09315"


def test_digest_tells_orders_apart() -> None:
    order = Order("v", (5, 5), seed=1, global_batch=2)
    changed = [
        replace(order, view="w"),
        replace(order, shard_sizes=(4, 6)),
        replace(order, seed=2),
        replace(order, global_batch=5),
        replace(order, window_shards=1),
        replace(order, tail="pad"),
    ]
    assert len({each.digest for each in [order, *changed]}) == 7
    assert replace(order).digest == order.digest


def test_only_the_windows_asked_for_are_made() -> None:
    """A batch in the middle of 10⁸ rows comes at once and holds no epoch in memory."""
    order = Order("v", (10_000,) * 10_000, seed=3, global_batch=512)
    batch = order.batch(100_000)
    assert len(set(batch.rows.tolist())) == 512
    assert len(order._windows) <= 2


@pytest.mark.parametrize(
    ("sizes", "batch", "tail", "said"),
    [((), 1, "drop", "no rows"), ((0, 0), 1, "pad", "no rows"), ((3,), 4, "drop", "fewer than one global batch")],
)
def test_impossible_orders_are_refused(sizes: tuple[int, ...], batch: int, tail: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Order("v", sizes, 0, batch, tail=tail)  # type: ignore[arg-type]
