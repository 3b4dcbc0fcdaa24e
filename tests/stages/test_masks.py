"""The JSON of masks is what pycocotools reads, and the same whatever order the masks came in."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
from pycocotools import mask as coco
from stage_data import read_column, run_stage

from semiocity.stages.base import make_stage
from semiocity.stages.masks import encode, load, made, region_masks


def test_masks_survive_and_their_facts_are_right() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    numbers = np.random.default_rng(seed)
    masks = numbers.random((7, 11, 17)) < numbers.random((7, 1, 1)) * 0.8 + 0.1
    masks[3] = False
    masks[4, 2:5, 6:9] = True
    masks[4, :2] = masks[4, 5:] = masks[4, :, :6] = masks[4, :, 9:] = False
    row = made(encode(masks))
    found = json.loads(row.fields["rle"][1])
    assert found["size"] == [11, 17]
    assert [item["area"] for item in found["masks"]] == sorted((int(m.sum()) for m in masks if m.any()), reverse=True)
    decoded = [coco.decode({"size": [11, 17], "counts": item["counts"]}).astype(bool) for item in found["masks"]]
    assert {m.tobytes() for m in decoded} == {m.tobytes() for m in masks if m.any()}
    box = next(item for item in found["masks"] if item["area"] == 9 and item["bbox"] == [6, 2, 3, 3])
    assert box["counts"]
    assert row.scalars == {"masks": len(decoded), "coverage": round(float(np.any(masks, 0).mean()), 6)}
    assert np.array_equal(load(row.fields["rle"][1]).arrays(), np.stack(decoded))


def test_the_order_of_masks_does_not_matter() -> None:
    masks = np.random.default_rng(3).random((9, 8, 8)) < 0.4
    masks[5] = masks[1]
    facts = [{"score": i / 10} for i in range(9)]
    shuffled = [4, 2, 8, 0, 1, 7, 6, 5, 3]
    assert made(encode(masks, facts)) == made(encode(masks[shuffled], [facts[i] for i in shuffled]))


def test_no_masks_at_all() -> None:
    row = made(encode(np.zeros((2, 4, 6), dtype=bool)))
    assert json.loads(row.fields["rle"][1]) == {"size": [4, 6], "masks": []}
    assert row.scalars == {"masks": 0, "coverage": 0.0}
    assert load(row.fields["rle"][1]).arrays().shape == (0, 4, 6)


def test_regions_become_masks_that_cover_everything_once() -> None:
    masks = region_masks(np.random.default_rng(0).integers(0, 5, (9, 9)))
    assert np.array_equal(masks.arrays().sum(0), np.ones((9, 9)))
    assert masks.coverage() == 1.0


def test_the_superpixel_column(street: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(street, tmp_path / "street"))
    found = read_column(run_stage(make_stage("segment", {"segmenter": "superpixels", "masks_max": 9}), own))
    for fields, scalars, tombstone in found.values():
        assert tombstone is None
        masks = load(fields["rle"] or b"")
        assert masks.size == (48, 48)
        assert 1 < scalars["masks"] == len(masks.items) <= 9
        assert scalars["coverage"] == 1.0
