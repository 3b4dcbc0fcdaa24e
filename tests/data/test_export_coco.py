"""COCO and FiftyOne: masks, boxes, captions and categories."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import numpy as np
import pytest
from exported import FIELDS, ours
from make_images import decoded
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from semiocity.data.columns import Dataset
from semiocity.data.export.engine import export
from semiocity.errors import UserError


def test_coco_masks_equal_ours(full: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(full.path, "coco", out)
    names = [spec.name for spec in full.classes]
    total = 0
    for split in ("train", "val"):
        files = {
            kind: COCO(str(out / "annotations" / f"{kind}_{split}.json")) for kind in ("masks", "instances", "stuff")
        }
        captions = COCO(str(out / "annotations" / f"captions_{split}.json"))
        expected = ours(full, *FIELDS, split=split)
        assert len(files["masks"].imgs) == len(expected)
        for number, image in files["masks"].imgs.items():
            key = Path(image["file_name"]).stem
            own = expected[key]
            assert (out / "images" / split / image["file_name"]).read_bytes() == own["base.image"]
            assert (image["width"], image["height"]) == (32, 32)
            label, instance = decoded(own["base.label"]), decoded(own["base.instance"])
            masks = json.loads(own["mask.rle"])
            found = files["masks"].loadAnns(files["masks"].getAnnIds(number))
            assert [a["segmentation"]["counts"] for a in found] == [m["counts"] for m in masks["masks"]]
            assert [a["bbox"] for a in found] == [m["bbox"] for m in masks["masks"]]
            for annotation in found:
                votes = np.bincount(label[files["masks"].annToMask(annotation).astype(bool)], minlength=len(names))
                assert files["masks"].cats[annotation["category_id"]]["name"] == names[votes.argmax()]
            things = files["instances"].loadAnns(files["instances"].getAnnIds(number))
            assert [a["instance"] for a in things] == [i for i in np.unique(instance) if i]
            for annotation in things:
                mask = files["instances"].annToMask(annotation)
                assert (mask == (instance == annotation["instance"])).all()
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert annotation["bbox"] == box
            painted = np.full(label.shape, -1)
            for annotation in files["stuff"].loadAnns(files["stuff"].getAnnIds(number)):
                painted[files["stuff"].annToMask(annotation) == 1] = annotation["category_id"] - 1
            assert (painted == label).all()
            (caption,) = captions.loadAnns(captions.getAnnIds(number))
            assert caption["caption"].encode() == own["caption.text"]
            total += len(found)
    assert total > 20


def test_masks_without_label_maps_are_of_one_category(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "fiftyone", tmp_path / "out", ["base.image", "mask.rle"])
    labels = json.loads((tmp_path / "out" / "val" / "labels.json").read_text())
    assert labels["categories"] == [{"id": 1, "name": "unknown", "supercategory": ""}]
    assert {a["category_id"] for a in labels["annotations"]} == {1}
    assert [a["id"] for a in labels["annotations"]] == list(range(1, len(labels["annotations"]) + 1))
    first = labels["annotations"][0]["segmentation"]
    assert coco_mask.decode(first).shape == (32, 32)
    files = {str(p.relative_to(tmp_path / "out" / "val" / "data")) for p in (tmp_path / "out").glob("val/data/*/*")}
    assert files == {image["file_name"] for image in labels["images"]}
    with pytest.raises(UserError, match="no place for word_text"):
        export(full.path, "coco", tmp_path / "no", ["base.image", "word.text"])


def test_boxes_of_the_source_keep_their_names(tmp_path: Path) -> None:
    rows, _, dataset = layouts.pack_recipe("bdd100k-boxes", layouts.bdd100k(tmp_path / "in"), tmp_path / "bdd")
    export(dataset.path, "coco", tmp_path / "out")
    found = {split: COCO(str(tmp_path / "out" / "annotations" / f"boxes_{split}.json")) for split in dataset.splits}
    expected = {row["meta"]["file"]: json.loads(row["boxes"]) for row in rows.values() if row["boxes"] is not None}
    assert sum(map(len, expected.values())) == sum(len(labels.anns) for labels in found.values()) > 1
    for labels in found.values():
        assert [category["name"] for category in labels.cats.values()] == ["car", "unknown"]
        for annotation in labels.anns.values():
            assert annotation["category_id"] == 1
            assert annotation["bbox"] in [box["bbox"] for found_ in expected.values() for box in found_]
            assert annotation["attributes"]["occluded"] is False
