"""Which sample is read when: a pure function of the dataset view, the seed, the step and the global batch.

An epoch shuffles the shards, then the rows inside windows of a few shards (so that reading stays local), and cuts the
sequence into *global* batches. A rank takes its slice of each, so the samples of a step do not depend on the number of
ranks. Nothing is drawn from a generator's history: every permutation is keyed by what it permutes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semiocity.errors import UserError
from semiocity.files import digest

Tail = Literal["drop", "pad"]
WINDOWS_KEPT = 4


class Batch(NamedTuple):
    """A global batch, or a rank's slice of one."""

    step: int
    rows: NDArray[np.int64]
    """[b] row numbers of the view."""
    places: NDArray[np.int64]
    """[b] place of each row in the global batch."""
    weights: NDArray[np.float32]
    """[b] 0 for a row that only fills up the last batch of an epoch, else global batch / real rows, so that
    the mean over all places is the mean over the real rows. 1 in all other batches."""


class _Epoch(NamedTuple):
    """The shuffled shards of an epoch."""

    shards: NDArray[np.int64]
    """[shards] shard at each place."""
    window_ends: NDArray[np.int64]
    """[windows] prefix sums of the rows of the windows."""


@dataclass(frozen=True)
class Order:
    """The order of all samples of a training. Equal on every rank; see `digest`."""

    view: str
    """Digest of the dataset view that the row numbers refer to."""
    shard_sizes: tuple[int, ...]
    """Rows of the view in each shard; row numbers count through the shards."""
    seed: int
    global_batch: int
    window_shards: int = 4
    """Shards whose rows are shuffled together. Reading touches no more than twice as many at a time."""
    tail: Tail = "drop"
    """What happens to the rows that are left when an epoch's length is no multiple of the global batch: `drop` leaves
    them out of this epoch, `pad` fills the batch with rows from its beginning at weight 0."""
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _sizes: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _epochs: OrderedDict[int, _Epoch] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)
    _windows: OrderedDict[tuple[int, int], NDArray[np.int64]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.window_shards < 1:
            raise UserError(f"global_batch ({self.global_batch}) and window ({self.window_shards}) must be at least 1")
        sizes = np.asarray(self.shard_sizes, dtype=np.int64)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_starts", np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))
        if self.rows == 0:
            raise UserError("the selected split of the dataset has no rows: nothing to train on")
        if self.steps_per_epoch == 0:
            raise UserError(
                f"the selected split has {self.rows} rows, fewer than one global batch of {self.global_batch}; "
                'make global_batch smaller, or set data.tail = "pad"'
            )

    @property
    def rows(self) -> int:
        """Rows of the view."""
        return int(self._starts[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        whole, rest = divmod(self.rows, self.global_batch)
        return whole + (self.tail == "pad" and rest > 0)

    @property
    def left_over(self) -> int:
        """Rows that each epoch drops, or places that it pads."""
        rest = self.rows % self.global_batch
        return rest if self.tail == "drop" or rest == 0 else self.global_batch - rest

    @property
    def digest(self) -> str:
        """Names this order: equal digests give equal batches at every step."""
        return digest(
            {
                "version": 1,
                "view": self.view,
                "shard_sizes": hashlib.sha256(self._sizes.astype("<i8").tobytes()).hexdigest(),
                "seed": self.seed,
                "global_batch": self.global_batch,
                "window_shards": self.window_shards,
                "tail": self.tail,
            },
            16,
        )

    def batch(self, step: int) -> Batch:
        """The global batch of `step`, counted from 0 through all epochs. Builds only the windows that it touches."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.global_batch
        stop = min(start + self.global_batch, self.rows)
        rows = self._slice(epoch, start, stop)
        weights = np.ones(self.global_batch, np.float32)
        if missing := self.global_batch - len(rows):
            weights[: len(rows)] = self.global_batch / len(rows)
            weights[len(rows) :] = 0
            # The epoch may be shorter than what is missing, so its beginning is repeated as often as needed.
            rows = np.concatenate([rows, np.resize(self._slice(epoch, 0, min(missing, self.rows)), missing)])
        return Batch(step, rows, np.arange(self.global_batch), weights)

    def slice_of(self, step: int, rank: int, world: int) -> Batch:
        """The part of the global batch of `step` that `rank` of `world` reads: contiguous, equal sizes."""
        size, rest = divmod(self.global_batch, world)
        if rest:
            raise UserError(f"global_batch ({self.global_batch}) is no multiple of the number of ranks ({world})")
        whole, part = self.batch(step), slice(rank * size, (rank + 1) * size)
        return Batch(step, whole.rows[part], whole.places[part], whole.weights[part])

    # -- inside an epoch ----------------------------------------------------------------------------------------------

    def _slice(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at places [start, stop) of an epoch's sequence."""
        ends = self._epoch(epoch).window_ends
        window, parts = int(np.searchsorted(ends, start, side="right")), []
        while start < stop:
            begin = int(ends[window - 1]) if window else 0
            until = min(stop, int(ends[window]))
            parts.append(self._window(epoch, window)[start - begin : until - begin])
            start, window = until, window + 1
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            shards = self._permutation(len(self._sizes), "shards", epoch)
            ends = np.cumsum(self._sizes[shards])
            last = np.minimum(
                np.arange(self.window_shards, len(ends) + self.window_shards, self.window_shards), len(ends)
            )
            _keep(self._epochs, epoch, _Epoch(shards, ends[last - 1]), 2)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        if (epoch, window) not in self._windows:
            first = window * self.window_shards
            shards = self._epoch(epoch).shards[first : first + self.window_shards]
            rows = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
            shuffled = rows[self._permutation(len(rows), "rows", epoch, window)]
            _keep(self._windows, (epoch, window), shuffled, WINDOWS_KEPT)
        return self._windows[epoch, window]

    def _permutation(self, size: int, *key: str | int) -> NDArray[np.int64]:
        """A permutation of range(size), keyed by the view, the seed and `key`.

        Made from Philox's raw output, which is fixed for all time; numpy's own shuffles may change with a version.
        """
        name = "/".join(map(str, (self.view, self.seed, *key)))
        words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8")
        return np.argsort(np.random.Philox(key=words.astype(np.uint64)).random_raw(size), kind="stable")


def _keep(cache: OrderedDict, key: object, value: object, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
