"""COCO annotations from instance maps, label maps and the column `mask`. Category id = class id + 1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from semiocity.data.export.selection import map_ids

UNKNOWN = "unknown"
"""Category of what has no class: its id is the number of classes plus 1."""


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's list of categories: the classes, as far as label maps are exported, and `unknown`."""
    return [
        {"id": number, "name": name, "supercategory": ""} for number, name in enumerate([*classes, UNKNOWN], start=1)
    ]


def of_instances(instance: bytes, label: bytes | None, classes: int) -> Iterator[dict[str, Any]]:
    """One annotation an instance id (0 is none), ascending."""
    ids = map_ids(instance, 16)
    labels = _labels(label)
    for number in np.unique(ids):
        if number:
            mask = ids == number
            yield {**_of_mask(mask), "category_id": _category(mask, labels, classes), "instance": int(number)}


def of_stuff(label: bytes, classes: int) -> Iterator[dict[str, Any]]:
    """One annotation a class that is in the picture, ascending."""
    ids = map_ids(label)
    for number in np.unique(ids):
        if number < classes:
            yield {**_of_mask(ids == number), "category_id": int(number) + 1}


def of_boxes(boxes: bytes) -> Iterator[dict[str, Any]]:
    """The boxes of the source, in their order; the class is a name yet."""
    for item in json.loads(boxes):
        width, height = item["bbox"][2:]
        yield {**item, "area": round(width * height, 2), "iscrowd": 0}


def of_masks(rle: bytes, label: bytes | None, classes: int) -> Iterator[dict[str, Any]]:
    """The masks of the column `mask`, in their order, run-lengths as they are; whatever else is known of one stays."""
    found = json.loads(rle)
    labels = _labels(label)
    for item in found["masks"]:
        segmentation = {"size": found["size"], "counts": item["counts"]}
        mask = None if labels is None else coco.decode(segmentation).astype(bool)
        yield {
            **{name: value for name, value in item.items() if name != "counts"},
            "segmentation": segmentation,
            "category_id": _category(mask, labels, classes),
            "iscrowd": 0,
        }


def _of_mask(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": [int(side) for side in mask.shape], "counts": rle["counts"].decode("ascii")},
        "bbox": [int(value) for value in coco.toBbox(rle)],
        "area": int(coco.area(rle)),
        "iscrowd": 0,
    }


def _labels(label: bytes | None) -> np.ndarray | None:
    return None if label is None else map_ids(label)


def _category(mask: np.ndarray | None, labels: np.ndarray | None, classes: int) -> int:
    """The class that most of the mask's pixels have, the lowest of equals; pixels without a class have no vote."""
    if mask is None or labels is None:
        return classes + 1
    votes = np.bincount(labels[mask], minlength=256)[:classes]
    return int(votes.argmax()) + 1 if votes.size and votes.any() else classes + 1
