"""BDD100K: `images/{100k,10k}/SPLIT/NAME.jpg`, `labels/sem_seg/masks/SPLIT/NAME.png`, `labels/det_20/det_SPLIT.json`.

F. Yu et al., "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020. Label maps hold
Cityscapes' 19 train ids, 255 for unlabelled, and belong to the 10k pictures; boxes belong to the 100k. Some pictures
are in both sets and then have both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from semiocity.data.sources.base import Entry, FileSource, Rejection, class_table, each_once
from semiocity.data.sources.json_stream import elements
from semiocity.data.sources.paired import expect, paired
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image", "label")
CLASSES = class_table("""
     0  128  64 128   0  road
     1  244  35 232   1  sidewalk
     2   70  70  70   2  building
     3  102 102 156   3  wall
     4  190 153 153   4  fence
     5  153 153 153   5  pole
     6  250 170  30   6  traffic light
     7  220 220   0   7  traffic sign
     8  107 142  35   8  vegetation
     9  152 251 152   9  terrain
    10   70 130 180  10  sky
    11  220  20  60  11  person
    12  255   0   0  12  rider
    13    0   0 142  13  car
    14    0   0  70  14  truck
    15    0  60 100  15  bus
    16    0  80 100  16  train
    17    0   0 230  17  motorcycle
    18  119  11  32  18  bicycle
""")
IGNORE_ID = 255
SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {"weather": "str", "scene": "str", "timeofday": "str"}

LAYOUT = (
    "BDD100K as its zip files unpack: images/{}/{{train,val}}/*.jpg, labels/sem_seg/masks/{{train,val}}/*.png, "
    + ("labels/det_20/det_{{train,val}}.json")
)


class Bdd100kSource(FileSource):
    """BDD100K, 19 classes; root holds images and labels."""

    kind: Literal["bdd100k"] = "bdd100k"
    images: Literal["10k", "100k"] = "10k"
    """10k: the pictures that have label maps. 100k: those that have boxes; their recipe promises no label."""
    splits: Annotated[tuple[Literal["train", "val", "test"], ...], AfterValidator(each_once)] = ("train", "val")
    """test has neither label maps nor boxes."""


def entries(source: Bdd100kSource) -> Iterator[Entry | Rejection]:
    """One entry a picture, with weather, scene, time of day and boxes where det_20 has it.

    Of det_20, what belongs to the pictures of a split is held in memory as text: some 150 MB for train of 100k. Raises
    UserError when a folder is missing or a JSON file is damaged.
    """
    folders = {split: f"images/{source.images}/{split}" for split in source.splits}
    expect(source, list(folders.values()), LAYOUT.format(source.images))
    for split, folder in folders.items():
        label = {"label": (f"labels/sem_seg/masks/{split}", ".png")}
        found = list(paired(source, folder, split, label))
        frames = _frames(source, {_file_name(item) for item in found if isinstance(item, Entry)})
        for item in found:
            if isinstance(item, Entry) and (text := frames.get(_file_name(item))):
                item = _described(item, json.loads(text))
            yield item


def _file_name(item: Entry) -> str:
    return item.name.rpartition("/")[2]


def _frames(source: Bdd100kSource, wanted: set[str]) -> dict[str, str]:
    """File name → {"attributes", "boxes"} as JSON text, for the pictures wanted. The two sets cut their splits
    differently, so both files are read whatever the split."""
    frames = {}
    for split in ("train", "val"):
        path = source.root / "labels" / "det_20" / f"det_{split}.json"
        if not path.is_file():
            continue
        for _, frame in elements(path):
            try:
                if frame["name"] in wanted:
                    boxes = [_box(item) for item in frame.get("labels") or () if item.get("box2d")]
                    content = {"attributes": frame.get("attributes") or {}, "boxes": boxes}
                    frames[frame["name"]] = json.dumps(content, separators=(",", ":"))
            except (KeyError, TypeError, AttributeError) as error:
                name = frame.get("name") if isinstance(frame, dict) else None
                raise UserError(f"{path}: no list of frames as in det_20 ({error!r} at {name})") from None
    return frames


def _box(item: dict[str, Any]) -> dict[str, Any]:
    corners = item["box2d"]
    x, y = corners["x1"], corners["y1"]
    bbox = [x, y, corners["x2"] - x, corners["y2"] - y]
    return {"label": item["category"], "bbox": bbox, "attributes": item.get("attributes") or {}}


def _described(item: Entry, frame: dict[str, Any]) -> Entry:
    scalars = {name: frame["attributes"].get(name) for name in SCALARS}
    return item.with_boxes(frame["boxes"])._replace(scalars=scalars)
