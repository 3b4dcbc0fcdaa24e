"""Which aspect bucket a row is in: the one whose shape is nearest to its own, by the logarithm of width over height."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semiocity.config import digest
from semiocity.data.layout import COUNTS
from semiocity.errors import UserError
from semiocity.files import write_atomic

EXACT = 2**16
"""Pictures with sides below this are compared in 64-bit integers: buckets have sides up to 2**14."""


def bucket_ids(widths: NDArray[Any], heights: NDArray[Any], sizes: Sequence[tuple[int, int]]) -> NDArray[np.uint16]:
    """Bucket of each picture; `sizes` are (width, height) from the tallest shape to the widest.

    Between two neighbouring shapes a and b the border is sqrt(a·b). It is compared in whole numbers, so that every
    machine decides alike; a picture on the border goes to the taller shape.
    """
    largest = max(int(widths.max(initial=1)), int(heights.max(initial=1)))
    kind: Any = np.int64 if largest < EXACT else object
    wide, high = widths.astype(kind) ** 2, heights.astype(kind) ** 2
    ids = np.zeros(len(widths), np.uint16)
    for (w, h), (next_w, next_h) in pairwise(sizes):
        ids += (wide * (h * next_h) > high * (w * next_w)).astype(np.uint16)
    return ids


class View(Protocol):
    """What is needed of a view of a dataset (see `semiocity.data.columns`)."""

    dataset: Any

    @property
    def digest(self) -> str: ...
    @property
    def shard_sizes(self) -> Sequence[int]: ...
    def rows_of(self, shard: int) -> NDArray[Any]: ...


class AspectBuckets:
    """Buckets of a view, from the scalars `width` and `height` of its base column: the order's `Buckets`.

    Counting opens the index of every shard once; the counts are kept in `DATASET/buckets/`, so that it happens once for
    a view and a list of sizes. On 100,000 shards take a saved view instead: its array tasks count while they select.
    """

    def __init__(self, view: View, sizes: Sequence[tuple[int, int]]) -> None:
        self.view = view
        self.bucket_sizes = tuple(sizes)

    @cached_property
    def bucket_counts(self) -> NDArray[np.int64]:
        """[shards, buckets]"""
        path = self._cache
        found = _load(path, (len(self.view.shard_sizes), len(self.bucket_sizes)))
        if found is None:
            found = np.zeros((len(self.view.shard_sizes), len(self.bucket_sizes)), np.int64)
            for shard, rows in enumerate(self.view.shard_sizes):
                if rows:
                    found[shard] = np.bincount(self.buckets_of(shard), minlength=len(self.bucket_sizes))
            _store(path, found)
        return found

    def buckets_of(self, shard: int) -> NDArray[np.uint16]:
        """[rows of the view in the shard] bucket of each. UserError when a row has no width or height."""
        reader, rows = self.view.dataset.reader("base", shard), self.view.rows_of(shard)
        sides = []
        for name in ("width", "height"):
            side = np.array([value or 0 for value in reader.column(name)], np.int64)[rows]
            if (side < 1).any():
                key = reader.keys[int(rows[int(np.argmax(side < 1))])]
                raise UserError(f"{reader.path}: row {key} has no {name}, which buckets need; pack the dataset again")
            sides.append(side)
        return bucket_ids(sides[0], sides[1], self.bucket_sizes)

    @property
    def _cache(self) -> Path:
        name = digest({"view": self.view.digest, "sizes": self.bucket_sizes}, 16)
        return Path(self.view.dataset.path) / COUNTS / f"{name}.npy"


def buckets_of_rows(view: Any, rows: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Bucket of each of some rows of a view, by their numbers."""
    buckets, ends = bucketed(view, sizes), np.cumsum(view.shard_sizes)
    shards = np.searchsorted(ends, rows, side="right").tolist()
    of_shard = {shard: buckets.buckets_of(shard) for shard in sorted(set(shards))}
    return [int(of_shard[shard][row - (int(ends[shard - 1]) if shard else 0)]) for row, shard in zip(rows, shards)]


def first_of_bucket(view: Any, bucket: int, sizes: Sequence[tuple[int, int]], wanted: int) -> list[int]:
    """The first `wanted` rows of a view that are in a bucket; fewer where there are no more."""
    found: list[int] = []
    ends = np.cumsum(view.shard_sizes).tolist()
    for end, count in zip(ends, view.shard_sizes):
        if len(found) >= wanted:
            break
        rows = range(end - count, end)
        found += [row for row, i in zip(rows, buckets_of_rows(view, rows, sizes)) if i == bucket]
    return found[:wanted]


def bucketed(view: Any, sizes: Sequence[tuple[int, int]]) -> Any:
    """What the order needs to know of a view's buckets: the view itself when it was saved with these sizes."""
    return view if tuple(getattr(view, "bucket_sizes", ())) == tuple(sizes) else AspectBuckets(view, sizes)


def _load(path: Path, shape: tuple[int, int]) -> NDArray[np.int64] | None:
    """Counts that were stored; None when there are none or the file is not what was stored."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body, seal = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != seal:
        return None
    counts = np.load(io.BytesIO(body), allow_pickle=False)
    return counts if counts.shape == shape else None


def _store(path: Path, counts: NDArray[np.int64]) -> None:
    sink = io.BytesIO()
    np.save(sink, counts, allow_pickle=False)
    body = sink.getvalue()
    try:
        write_atomic(path, body + hashlib.sha256(body).digest())
    except OSError:
        return  # a dataset that may only be read is counted each time
