"""Columns side by side: fields, splits, tombstones, and what is said when something is missing."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from make_images import add_column, city_recipe, dice, packed
from PIL import Image

from semiocity.data import columns
from semiocity.data.columns import Dataset, View
from semiocity.data.sources.city import CLASSES, PALETTE
from semiocity.errors import UserError


def keys_of(view: View) -> list[str]:
    return [view.key(i) for i in range(len(view))]


def test_what_a_dataset_says_of_itself(town: Path) -> None:
    dataset = Dataset.open(town)
    assert (dataset.name, dataset.shards, dataset.image_size, dataset.ignore_id) == ("town", 4, (32, 32), None)
    assert tuple(spec.name for spec in dataset.classes) == CLASSES
    assert dataset.palette == list(PALETTE)
    assert dataset.splits == {"train": 14, "val": 6}
    assert (dataset.rows(), dataset.rows("train"), dataset.rows("val")) == (20, 14, 6)
    assert list(dataset.columns) == ["base", "word"]
    assert dataset.column("word").tombstones == {"permanent": 1, "retry": 0, "removed": 0}


def test_a_view_joins_columns_row_by_row(town: Path) -> None:
    dataset = Dataset.open(town)
    view = dataset.view(["base.image", "base.label", "base.time", "word.text", "word.letters"])
    assert len(view) == 19, "20 rows, one of them a tombstone"
    for i in range(len(view)):
        row = view.read(i)
        assert row["word.text"] == view.key(i).encode()
        assert row["word.letters"] == len(view.key(i))
        assert row["base.time"] in ("day", "dusk", "night")
        image, label = (Image.open(io.BytesIO(row[f"base.{name}"])) for name in ("image", "label"))
        assert image.size == label.size == (32, 32)
        assert np.asarray(label).max() < 12


def test_splits_partition_the_rows(town: Path) -> None:
    dataset = Dataset.open(town)
    train, val, every = (dataset.view(["base.image"], split) for split in ("train", "val", None))
    assert (len(train), len(val), len(every)) == (14, 6, 20)
    assert sorted(keys_of(train) + keys_of(val)) == keys_of(every) == sorted(keys_of(every))
    for view, split in ((train, "train"), (val, "val")):
        assert {view.scalars(i)["split"] for i in range(len(view))} == {split}
        meta = dataset.view(["base.meta"], split)
        assert {json.loads(meta.read(i)["base.meta"])["id"].split("/")[0] for i in range(len(meta))} == {split}
    assert sum(train.shard_sizes) == 14
    assert len(train.shard_sizes) == 4


def test_rows_that_failed_are_left_out_of_views_that_need_them(town: Path) -> None:
    dataset = Dataset.open(town)
    failed = dataset.reader("word", 1).keys[2]
    assert dataset.reader("word", 1).tombstoned(2) == ("permanent", "cannot be read")
    every, needing = dataset.view(["base.image"]), dataset.view(["base.image", "word.text"])
    assert failed in keys_of(every)
    assert keys_of(needing) == [key for key in keys_of(every) if key != failed]
    assert [a - b for a, b in zip(every.shard_sizes, needing.shard_sizes)] == [0, 1, 0, 0]


def test_sizes_without_tombstones_need_no_index(own_town: Path) -> None:
    """A hundred thousand shards must not be opened to know how many rows there are."""
    for path in own_town.rglob("*.parquet"):
        path.unlink()
    assert len(Dataset.open(own_town).view(["base.image"], "train")) == 14


def test_the_digest_is_that_of_what_is_seen(town: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(town)
    view = dataset.view(["base.image", "base.label"], "train")
    assert view.digest == Dataset.open(town).view(["base.label", "base.image"], "train").digest
    packed(city_recipe(), tmp_path / "elsewhere")
    assert Dataset.open(tmp_path / "elsewhere").view(["base.image", "base.label"], "train").digest == view.digest
    assert Dataset.open(tmp_path / "elsewhere").digest == dataset.digest
    others = [
        dataset.view(["base.image"], "train"),
        dataset.view(["base.image", "base.label"], "val"),
        dataset.view(["base.image", "base.label"]),
        dataset.view(["base.image", "base.label", "word.text"], "train"),
    ]
    add_column(tmp_path / "elsewhere", "word")  # without the tombstone
    others.append(Dataset.open(tmp_path / "elsewhere").view(["base.image", "base.label", "word.text"], "train"))
    assert len({view.digest, *(other.digest for other in others)}) == 6


def test_random_access_in_any_order(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "OPEN_SHARDS", 2)
    monkeypatch.setattr(columns, "ROW_LISTS", 2)
    view = Dataset.open(town).view(["base.image", "word.text"], "train")
    keys = keys_of(view)
    random = dice()
    for _ in range(100):
        i = random.randrange(len(view))
        assert view.read(i)["word.text"] == keys[i].encode()
    for i in (-1, len(view)):
        with pytest.raises(IndexError):
            view.read(i)


def test_a_view_can_be_sent_to_another_process(town: Path) -> None:
    view = Dataset.open(town).view(["base.image"], "val")
    expected = view.read(3)
    copy = pickle.loads(pickle.dumps(view))
    assert copy.read(3) == expected
    assert copy.digest == view.digest


def test_what_is_missing_is_named(town: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(town)
    assert dataset.has("base.label") and dataset.has("base.split") and dataset.has("word.text")
    assert not any(dataset.has(name) for name in ("base.caption", "mask.rle", "base", "label", "base."))
    for field, expected in (
        ("mask.rle", "no column mask"),
        ("base.caption", "column base has no field caption"),
        ("base", "column base has no field"),
    ):
        with pytest.raises(UserError, match=expected):
            dataset.view([field])
    with pytest.raises(UserError, match="no split test; there are train, val"):
        dataset.view(["base.image"], "test")
    with pytest.raises(UserError, match="pack"):
        Dataset.open(tmp_path)
    with pytest.raises(UserError, match="no column mask"):
        dataset.column("mask")


def test_an_index_of_another_length_is_refused(own_town: Path) -> None:
    dataset = Dataset.open(own_town)
    folder = dataset.column("base").folder / "00000"
    (folder / "00000000.parquet").write_bytes((folder / "00000003.parquet").read_bytes())
    with pytest.raises(UserError, match="2 rows, the manifest says 6"):
        dataset.view(["base.image"]).read(0)
