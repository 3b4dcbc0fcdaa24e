"""Which sample when: every sample once an epoch, in the same global batches on any number of ranks."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from made_orders import MadeBuckets, made_order, random_order
from make_images import dice

from semiocity.data.order import Order, refuse_other
from semiocity.errors import UserError


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


def golden(buckets: bool) -> Order:
    made = MadeBuckets([np.array(ids) for ids in ([0, 1, 1], [0, 0, 1, 0, 1], [0, 1])], 2)
    return Order("golden", (3, 5, 2), seed=42, global_batch=2, window_shards=2, buckets=made if buckets else None)


def test_order_never_changes() -> None:
    """The same rows in every version of this project and of numpy: a run may go on after an upgrade."""
    for buckets, rows, digest in (
        (False, [[2, 1], [0, 8], [7, 5], [4, 3], [9, 6], [5, 3]], "b4ed8ce79301880f"),
        (True, [[2, 1], [0, 8], [9, 5], [6, 4], [4, 8], [3, 6]], "782c9b26ba1e04d1"),
    ):
        order = golden(buckets)
        assert [order.batch(step).rows.tolist() for step in range(6)] == rows
        assert order.digest == digest


def test_digest_tells_orders_apart() -> None:
    order = golden(buckets=True)
    assert isinstance(order.buckets, MadeBuckets)
    others = MadeBuckets([ids[::-1] for ids in order.buckets.ids], 3)
    changed = [
        replace(order, view="w"),
        replace(order, shard_sizes=(4, 4, 2), buckets=None),
        replace(order, seed=2),
        replace(order, global_batch=5),
        replace(order, window_shards=1),
        replace(order, tail="pad"),
        replace(order, buckets=None),
        replace(order, buckets=others),
    ]
    assert len({each.digest for each in [order, *changed]}) == 9
    assert replace(order).digest == order.digest


def test_what_differs_is_named() -> None:
    order = golden(buckets=True)
    refuse_other(order.facts, replace(order).facts, "here")
    for other, said in (
        (replace(order, seed=7), r"here: .* since seed differs \(7 then, 42 now\)"),
        (replace(order, view="w"), "columns' revisions"),
        (replace(order, global_batch=3), "global_batch differs"),
        (replace(order, buckets=None), "the rows of the shards or their buckets"),
    ):
        with pytest.raises(UserError, match=said):
            refuse_other(other.facts, order.facts, "here")
    with pytest.raises(UserError, match=r"the rule that makes the order.*1 then, 2 now"):
        refuse_other("98226cb931b09315", order.facts, "here")


# -- buckets ----------------------------------------------------------------------------------------------------------


def test_batches_have_one_shape_and_buckets_mix() -> None:
    chance = dice()
    for _ in range(30):
        order = random_order(chance, buckets=True)
        assert isinstance(order.buckets, MadeBuckets)
        bucket_of = np.concatenate(order.buckets.ids)
        for step in range(2 * order.steps_per_epoch):
            batch = order.batch(step)
            assert set(bucket_of[batch.rows].tolist()) == {batch.bucket}
    order = made_order([200] * 12, 5, 16, buckets=2)
    buckets = [order.batch(step).bucket for step in range(order.steps_per_epoch)]
    turns = sum(one != other for one, other in pairwise(buckets))
    assert turns > order.steps_per_epoch / 5, "the batches of a window are shuffled over the buckets"


def test_each_bucket_has_its_own_tail() -> None:
    order = made_order([50] * 6, 9, 16, buckets=3)
    counts = order.rows_by_bucket
    assert order.left_over_by_bucket.tolist() == (counts % 16).tolist()
    assert order.steps_per_epoch == int((counts // 16).sum())
    padded = replace(order, tail="pad")
    assert padded.left_over == int((-counts % 16).sum())
    seen: Counter[int] = Counter()
    for step in range(padded.steps_per_epoch):
        batch = padded.batch(step)
        assert batch.weights.mean() == pytest.approx(1)
        seen.update(batch.rows[batch.weights > 0].tolist())
    assert seen == dict.fromkeys(range(300), 1)


def test_a_window_yields_what_is_full_by_its_end() -> None:
    """The formula of docs/order.md, against a queue that is filled window by window."""
    chance = dice()
    for _ in range(20):
        order = random_order(chance, buckets=True)
        tables, waiting, made = order._epoch(0), Counter[int](), []
        for window in range(len(tables.ends)):
            shards = tables.shards[window * order.window_shards : (window + 1) * order.window_shards]
            for bucket, count in enumerate(order._counts[shards].sum(axis=0).tolist()):
                waiting[bucket] += count
            full = {bucket: count // order.global_batch for bucket, count in waiting.items()}
            waiting.subtract({bucket: n * order.global_batch for bucket, n in full.items()})
            made.append(sum(full.values()))
        if order.tail == "pad":
            made[-1] += sum(count > 0 for count in waiting.values())
        assert np.cumsum(made).tolist() == tables.ends.tolist()


def test_a_rare_bucket_opens_only_the_shards_that_have_it() -> None:
    ids = [np.zeros(100, np.int64) for _ in range(300)]
    for shard in range(0, 300, 30):
        ids[shard][7] = 1
    made = MadeBuckets(ids, 2)
    order = Order("v", (100,) * 300, 1, 10, buckets=made)
    step = next(s for s in range(order.steps_per_epoch - 1, -1, -1) if order.batch(s).bucket == 1)
    again = replace(order)
    made.asked = 0
    assert sorted(again.batch(step).rows.tolist()) == [shard * 100 + 7 for shard in range(0, 300, 30)]
    assert made.asked == 10


def test_buckets_of_another_view_are_refused() -> None:
    made = MadeBuckets([np.array([0, 1, 1])], 2)
    with pytest.raises(UserError, match="counts are of another view"):
        Order("v", (4,), 1, 1, buckets=made)
    order = Order("v", (3,), 1, 1, buckets=made)
    order.rows_by_bucket  # noqa: B018 - counted before the shard changes
    made.ids[0] = np.array([0, 0, 1])
    with pytest.raises(UserError, match="other buckets than counted"):
        order.batch(0)


def test_a_bucket_smaller_than_a_batch_is_dropped_whole() -> None:
    made = MadeBuckets([np.array([0, 0, 0, 0, 1])], 2)
    order = Order("v", (5,), 1, 2, buckets=made)
    seen = {row for step in range(order.steps_per_epoch) for row in order.batch(step).rows.tolist()}
    assert seen == {0, 1, 2, 3}
    with pytest.raises(UserError, match="4 in its largest bucket, fewer than one global batch of 5"):
        Order("v", (5,), 1, 5, buckets=made)


def test_shards_ahead_are_those_of_the_next_windows() -> None:
    order = made_order([10] * 10, 3, 5, window=3)
    tables = order._epoch(0)
    assert order.shards_ahead(0, 0) == tables.shards[:3].tolist()
    assert order.shards_ahead(7, 1) == tables.shards[3:9].tolist()
    assert order.window_at(order.steps_per_epoch) == 4
    last = order.shards_ahead(order.steps_per_epoch - 1, 1)
    assert last[0] == tables.shards[9]
    assert last[1:] == [s for s in order._epoch(1).shards[:3].tolist() if s != last[0]]


def test_a_hundred_thousand_shards() -> None:
    """10⁹ rows in ten buckets: any step comes at once, and the tables stay small."""
    shards, share = 100_000, np.array([4000, 2500, 1500, 900, 600, 300, 150, 40, 9, 1])

    class Counted(MadeBuckets):
        @property
        def bucket_counts(self) -> np.ndarray:
            return np.broadcast_to(share, (shards, 10))

        def buckets_of(self, shard: int) -> np.ndarray:
            return np.random.default_rng(shard).permutation(np.repeat(np.arange(10, dtype=np.uint8), share))

    order = Order("v", np.full(shards, 10_000), 3, 2048, buckets=Counted([], 10))
    assert order.rows == 10**9
    for step in (0, 123_456, 3 * order.steps_per_epoch + 5):
        assert len(set(order.batch(step).rows.tolist())) == 2048
    tables = sum(array.nbytes for epoch in order._epochs.values() for array in epoch)
    pieces = sum(piece.nbytes for piece in order._pieces.values())
    assert tables < 12e6
    assert pieces < 2e6


def test_only_the_windows_asked_for_are_made() -> None:
    """A batch in the middle of 10⁸ rows comes at once and holds no epoch in memory."""
    order = Order("v", (10_000,) * 10_000, seed=3, global_batch=512)
    batch = order.batch(100_000)
    assert len(set(batch.rows.tolist())) == 512
    assert len(order._pieces) <= 2


@pytest.mark.parametrize(
    ("sizes", "batch", "tail", "said"),
    [((), 1, "drop", "no rows"), ((0, 0), 1, "pad", "no rows"), ((3,), 4, "drop", "fewer than one global batch")],
)
def test_impossible_orders_are_refused(sizes: tuple[int, ...], batch: int, tail: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Order("v", sizes, 0, batch, tail=tail)  # type: ignore[arg-type]
