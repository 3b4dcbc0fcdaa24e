"""Which sample is read when: a pure function of the dataset view, the seed, the step and the global batch.

An epoch shuffles the shards, then the rows inside windows of a few shards (so that reading stays local), bucket by
bucket, and cuts each bucket's sequence into *global* batches of one shape. A window yields the batches that are full at
its end, in an order of their own; what is left of a bucket goes into the next window. A rank takes its slice of each
batch, so the samples of a step do not depend on the number of ranks. Nothing is drawn from a generator's history: every
permutation is keyed by what it permutes. `docs/order.md` has the formulas.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from semiocity.errors import UserError
from semiocity.files import digest

Tail = Literal["drop", "pad"]
VERSION = 2
"""Raised whenever equal settings would give another order."""
EPOCHS_KEPT = 2
SHARDS_KEPT = 64
"""Shards whose bucket ids are kept."""


class Buckets(Protocol):
    """Which bucket each row of a view is in."""

    @property
    def bucket_sizes(self) -> Sequence[tuple[int, int]]:
        """Width and height in pixels that rows of each bucket are brought to."""

    @property
    def bucket_counts(self) -> NDArray[np.int64]:
        """[shards, buckets] rows of the view."""

    def buckets_of(self, shard: int) -> NDArray[Any]:
        """[rows of the view in the shard] bucket of each, in the order of their numbers."""


class Batch(NamedTuple):
    """A global batch, or a rank's slice of one."""

    step: int
    rows: NDArray[np.int64]
    """[b] row numbers of the view."""
    places: NDArray[np.int64]
    """[b] place of each row in the global batch."""
    weights: NDArray[np.float32]
    """[b] 0 for a row that only fills up the last batch of a bucket, else global batch / real rows, so that the mean
    over all places is the mean over the real rows. 1 in all other batches."""
    bucket: int = 0
    """All rows are of this bucket."""


class _Epoch(NamedTuple):
    """An epoch's tables."""

    shards: NDArray[np.int64]
    """[shards] shard at each place."""
    rows: NDArray[np.int64]
    """[windows, buckets] rows of a bucket in this window and those before it."""
    batches: NDArray[np.int64]
    """[windows, buckets] batches of a bucket that are full by the end of the window."""
    ends: NDArray[np.int64]
    """[windows] batches of all buckets by the end of the window."""


@dataclass(frozen=True, eq=False)
class Order:
    """The order of all samples of a training. Equal on every rank; see `digest`.

    Memory: 8 · (shards + windows) · (2 · buckets + 2) bytes for two epochs, and the row numbers of about three windows.
    """

    view: str
    """Digest of the dataset view that the row numbers refer to."""
    shard_sizes: Sequence[int] | NDArray[np.int64] = field(repr=False)
    """Rows of the view in each shard; row numbers count through the shards."""
    seed: int
    global_batch: int
    window_shards: int = 4
    """Shards whose rows are shuffled together. Beyond them a batch touches only shards with rows left of its bucket."""
    tail: Tail = "drop"
    """What happens to the rows of a bucket that are left when its length is no multiple of the global batch: `drop`
    leaves them out of this epoch, `pad` fills the batch with rows from the bucket's beginning at weight 0."""
    buckets: Buckets | None = field(default=None, repr=False)
    """None: all rows are in one bucket."""
    _epochs: OrderedDict[int, _Epoch] = field(default_factory=OrderedDict, init=False, repr=False)
    _pieces: OrderedDict[tuple[int, int, int], NDArray[np.int64]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )
    _ids: OrderedDict[int, NDArray[Any]] = field(default_factory=OrderedDict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.window_shards < 1:
            raise UserError(f"global_batch ({self.global_batch}) and window ({self.window_shards}) must be at least 1")
        if not np.array_equal(self._counts.sum(axis=1), self._sizes):
            raise UserError(f"view {self.view[:12]}: the buckets' counts are of another view; build it again")
        if self.rows == 0:
            raise UserError("the selected split of the dataset has no rows: nothing to train on")
        if self.steps_per_epoch == 0:
            where = f", {int(self._in_bucket.max())} in its largest bucket" if self.buckets else ""
            raise UserError(
                f"the selected split has {self.rows} rows{where}, fewer than one global batch of {self.global_batch}; "
                'make global_batch smaller, or set data.tail = "pad"'
            )

    # -- how much there is --------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of the view."""
        return int(self._starts[-1])

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the same in every epoch."""
        return int(self._batches_by(self._in_bucket[None]).sum())

    @property
    def left_over(self) -> int:
        """Rows that each epoch drops, or places that it pads, over all buckets."""
        return int(self.left_over_by_bucket.sum())

    @property
    def left_over_by_bucket(self) -> NDArray[np.int64]:
        """[buckets] the same for each. With `drop`, a bucket smaller than a global batch is never seen at all."""
        rest = self._in_bucket % self.global_batch
        return rest if self.tail == "drop" else -self._in_bucket % self.global_batch

    @property
    def rows_by_bucket(self) -> NDArray[np.int64]:
        """[buckets] rows of the view."""
        return self._in_bucket

    # -- its name -----------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> dict[str, Any]:
        """All that the order depends on, small enough for a checkpoint: see `refuse_other`."""
        return {
            "version": VERSION,
            "view": self.view,
            "rows": hashlib.sha256(self._counts.astype("<i8").tobytes()).hexdigest(),
            "seed": self.seed,
            "global_batch": self.global_batch,
            "window": self.window_shards,
            "tail": self.tail,
            "buckets": [list(map(int, size)) for size in self.buckets.bucket_sizes] if self.buckets else None,
        }

    @cached_property
    def digest(self) -> str:
        """Names this order: equal digests give equal batches at every step."""
        return digest(self.facts, 16)

    # -- step -> samples ----------------------------------------------------------------------------------------------

    def batch(self, step: int) -> Batch:
        """The global batch of `step`, counted from 0 through all epochs. Builds only what it touches."""
        epoch, place = divmod(step, self.steps_per_epoch)
        tables = self._epoch(epoch)
        window = int(np.searchsorted(tables.ends, place, side="right"))
        before = tables.batches[window - 1] if window else np.zeros_like(tables.batches[0])
        ends = np.cumsum(tables.batches[window] - before)
        shuffled = self._permutation(int(ends[-1]), "batches", epoch, window)
        chosen = int(shuffled[place - int(before.sum())])
        bucket = int(np.searchsorted(ends, chosen, side="right"))
        number = int(before[bucket]) + chosen - (int(ends[bucket - 1]) if bucket else 0)
        start = number * self.global_batch
        total = int(self._in_bucket[bucket])
        rows = self._slice(epoch, bucket, start, min(start + self.global_batch, total))
        weights = np.ones(self.global_batch, np.float32)
        if missing := self.global_batch - len(rows):
            weights[: len(rows)] = self.global_batch / len(rows)
            weights[len(rows) :] = 0
            # The bucket may be shorter than what is missing, so its beginning is repeated as often as needed.
            rows = np.concatenate([rows, np.resize(self._slice(epoch, bucket, 0, min(missing, total)), missing)])
        return Batch(step, rows, np.arange(self.global_batch), weights, bucket)

    def slice_of(self, step: int, rank: int, world: int) -> Batch:
        """The part of the global batch of `step` that `rank` of `world` reads: contiguous, equal sizes."""
        size, rest = divmod(self.global_batch, world)
        if rest:
            raise UserError(f"global_batch ({self.global_batch}) is no multiple of the number of ranks ({world})")
        whole, part = self.batch(step), slice(rank * size, (rank + 1) * size)
        return Batch(step, whole.rows[part], whole.places[part], whole.weights[part], whole.bucket)

    def window_at(self, step: int) -> int:
        """Number of the window that `step` is in, counted through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        ends = self._epoch(epoch).ends
        return epoch * len(ends) + int(np.searchsorted(ends, place, side="right"))

    def shards_ahead(self, step: int, windows: int) -> list[int]:
        """Shards of the window that `step` is in and of the `windows` after it, in the order of their need."""
        found: dict[int, None] = {}
        windows_per_epoch = -(-len(self._sizes) // self.window_shards)
        first = self.window_at(step)
        for number in range(first, first + windows + 1):
            shards = self._window(*divmod(number, windows_per_epoch))
            found.update(dict.fromkeys(shards[self._sizes[shards] > 0].tolist()))
        return list(found)

    # -- inside an epoch ----------------------------------------------------------------------------------------------

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return np.asarray(self.shard_sizes, dtype=np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sizes)])

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        if self.buckets is None:
            return self._sizes[:, None]
        return np.asarray(self.buckets.bucket_counts, dtype=np.int64)

    @cached_property
    def _in_bucket(self) -> NDArray[np.int64]:
        return self._counts.sum(axis=0)

    def _batches_by(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[windows, buckets] full batches of so many rows; padding fills one more by the end of an epoch."""
        batches = rows // self.global_batch
        if self.tail == "pad":
            batches[-1] = -(-rows[-1] // self.global_batch)
        return batches

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            shards = self._permutation(len(self._sizes), "shards", epoch)
            windows = np.arange(0, len(shards), self.window_shards)
            rows = np.cumsum(np.add.reduceat(self._counts[shards], windows, axis=0), axis=0)
            batches = self._batches_by(rows)
            _keep(self._epochs, epoch, _Epoch(shards, rows, batches, batches.sum(axis=1)), EPOCHS_KEPT)
        return self._epochs[epoch]

    def _slice(self, epoch: int, bucket: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at places [start, stop) of a bucket's sequence in an epoch."""
        ends, parts = self._epoch(epoch).rows[:, bucket], []
        while start < stop:
            window = int(np.searchsorted(ends, start, side="right"))  # skips windows without this bucket
            begin = int(ends[window - 1]) if window else 0
            until = min(stop, int(ends[window]))
            parts.append(self._piece(epoch, window, bucket)[start - begin : until - begin])
            start = until
        return np.concatenate(parts)

    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Shards of a window."""
        return self._epoch(epoch).shards[window * self.window_shards : (window + 1) * self.window_shards]

    def _piece(self, epoch: int, window: int, bucket: int) -> NDArray[np.int64]:
        """The rows of a bucket in a window, shuffled. Touches only shards that have some."""
        key = (epoch, window, bucket)
        if key not in self._pieces:
            shards = [int(s) for s in self._window(epoch, window) if self._counts[s, bucket]]
            rows = np.concatenate([self._starts[s] + self._members(s, bucket) for s in shards])
            shuffled = rows[self._permutation(len(rows), "rows", *key)]
            _keep(self._pieces, key, shuffled, 3 * self._counts.shape[1])
        self._pieces.move_to_end(key)
        return self._pieces[key]

    def _members(self, shard: int, bucket: int) -> NDArray[np.int64]:
        """Places of a bucket's rows among the view's rows of a shard, ascending."""
        if self.buckets is None:
            return np.arange(self._sizes[shard])
        if shard not in self._ids:
            ids = np.asarray(self.buckets.buckets_of(shard))
            if not np.array_equal(np.bincount(ids, minlength=self._counts.shape[1]), self._counts[shard]):
                raise UserError(f"shard {shard}: its rows are in other buckets than counted; build the view again")
            _keep(self._ids, shard, ids, max(SHARDS_KEPT, 2 * self.window_shards))
        self._ids.move_to_end(shard)
        return np.flatnonzero(self._ids[shard] == bucket)

    def _permutation(self, size: int, *key: str | int) -> NDArray[np.int64]:
        """A permutation of range(size), keyed by the view, the seed and `key`.

        Made from Philox's raw output, which is fixed for all time; numpy's own shuffles may change with a version.
        """
        name = "/".join(map(str, (self.view, self.seed, *key)))
        words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8")
        return np.argsort(np.random.Philox(key=words.astype(np.uint64)).random_raw(size), kind="stable")


WHAT = {
    "version": "the rule that makes the order (another version of Semiocity)",
    "view": "the view: the dataset's shards, its columns' revisions, the fields read or the split",
    "rows": "the rows of the shards or their buckets",
    "seed": "seed",
    "global_batch": "global_batch",
    "window": "data.window",
    "tail": "data.tail",
    "buckets": "the sizes of data.buckets",
}


def refuse_other(saved: Any, now: Mapping[str, Any], where: str) -> None:
    """UserError naming the first of an order's facts (`Order.facts`) that is another one than was saved."""
    if not isinstance(saved, Mapping):
        saved = {"version": 1}  # checkpoints of version 1 hold a digest alone
    for name, what in WHAT.items():
        if saved.get(name) != now[name]:
            short = [value[:16] if isinstance(value, str) else value for value in (saved.get(name), now[name])]
            raise UserError(
                f"{where}: the order of samples is another one now, since {what} differs ({short[0]} then, {short[1]} "
                "now); put it back, or start another run with --set run=NAME"
            )


Key = TypeVar("Key")
Value = TypeVar("Value")


def _keep(cache: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
