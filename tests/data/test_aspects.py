"""Aspect buckets of a view: the nearest shape, decided alike everywhere, counted once."""

import math
from pathlib import Path

import numpy as np
import pytest
from make_images import dice, jpeg, pack_folder, write_files

from semiocity.data.aspects import AspectBuckets, bucket_ids, buckets_of_rows, first_of_bucket
from semiocity.data.buckets import BucketOptions
from semiocity.data.columns import Dataset


def test_the_nearest_shape_wins() -> None:
    chance = dice()
    for _ in range(20):
        sizes = BucketOptions(
            area=chance.randrange(64**2, 2048**2), step=16, max_aspect=chance.uniform(1, 4)
        ).resolved()
        wide = np.array([chance.randrange(1, 70000) for _ in range(50)])
        high = np.array([chance.randrange(1, 70000) for _ in range(50)])
        found = bucket_ids(wide, high, sizes)
        for w, h, bucket in zip(wide.tolist(), high.tolist(), found.tolist()):
            away = [abs(math.log(w / h) - math.log(a / b)) for a, b in sizes]
            assert away[bucket] == pytest.approx(min(away), abs=1e-9)


def test_a_list_by_area() -> None:
    sizes = BucketOptions(area=1024**2).resolved()
    assert (1024, 1024) in sizes
    assert (1216, 832) in sizes
    assert list(sizes) == sorted(sizes, key=lambda size: size[0] / size[1])
    for width, height in sizes:
        assert (height, width) in sizes
        assert width % 64 == height % 64 == 0
        assert width * height <= 1024**2
        assert max(width, height) <= 2 * min(width, height)
    assert BucketOptions(sizes=((32, 16), (16, 32))).resolved() == ((16, 32), (32, 16))


def test_buckets_of_a_packed_view(tmp_path: Path) -> None:
    shapes = [(32, 48), (48, 32), (32, 32)]
    files = {f"{i}.jpg": jpeg(*shapes[i % 3], i) for i in range(20)}
    rows, _ = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    view = Dataset.open(tmp_path / "out").view(["base.image"])
    sizes = ((16, 24), (16, 16), (24, 16))
    made = AspectBuckets(view, sizes)
    assert made.bucket_counts.sum(axis=0).tolist() == [7, 6, 7]
    assert made.bucket_counts.sum(axis=1).tolist() == list(view.shard_sizes)
    start = 0
    for shard, size in enumerate(view.shard_sizes):
        ids = made.buckets_of(shard)
        for i, bucket in enumerate(ids.tolist()):
            key = view.key(start + i)
            meta = next(row["meta"] for row in rows.values() if row["key"] == key)
            assert (meta["width"] > meta["height"]) == (sizes[bucket][0] > sizes[bucket][1])
        start += size

    # Of single rows, wherever they are, and the first ones of a bucket.
    every = [i for shard in range(len(view.shard_sizes)) for i in made.buckets_of(shard).tolist()]
    some = [19, 0, 7, 7, 12]
    assert buckets_of_rows(view, some, sizes) == [every[row] for row in some]
    for bucket, rows_there in enumerate([7, 6, 7]):
        first = first_of_bucket(view, bucket, sizes, 4)
        assert first == [row for row, i in enumerate(every) if i == bucket][:4]
        assert len(first_of_bucket(view, bucket, sizes, 100)) == rows_there

    # Counted once: the second time nothing but the file is read, and a damaged file counts for nothing.
    (file,) = (tmp_path / "out" / "buckets").iterdir()
    again = AspectBuckets(view, sizes)
    again.buckets_of = None  # type: ignore[assignment]
    assert np.array_equal(again.bucket_counts, made.bucket_counts)
    content = bytearray(file.read_bytes())
    content[150] ^= 1
    file.write_bytes(content)
    assert np.array_equal(AspectBuckets(view, sizes).bucket_counts, made.bucket_counts)
