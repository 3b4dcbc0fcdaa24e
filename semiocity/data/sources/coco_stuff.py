"""COCO-Stuff 164k: COCO's `train2017/NAME.jpg` with `stuffthingmaps/train2017/NAME.png`, and COCO's captions.

H. Caesar, J. Uijlings, V. Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018; T.-Y. Lin et al.,
"Microsoft COCO: Common Objects in Context", ECCV 2014. Label maps hold COCO's ids less one (0 to 181, of which eleven
never occur), 255 for unlabelled. Colours are PASCAL VOC's colour map at COCO's ids, which are all distinct.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator

from semiocity.data.sources.base import Class, Entry, FileSource, Rejection, each_once, name_list
from semiocity.data.sources.files import check_root
from semiocity.data.sources.json_stream import elements
from semiocity.data.sources.paired import expect, paired
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image", "label")
NAMES = name_list("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, stop
    sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, backpack,
    umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball
    glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana,
    apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -,
    dining table, -, -, toilet, -, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster,
    sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, -, banner, blanket,
    branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
    clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
    floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
    ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper,
    pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof,
    rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
    wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""")
"""COCO's ids from 1; `-` for those that no picture has."""


def voc_color(id: int) -> tuple[int, int, int]:
    """PASCAL VOC's colour of an id: its bits, dealt to red, green and blue, the lowest first to the highest bit."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (id >> bit & 1) << (7 - bit // 3)
    return color[0], color[1], color[2]


CLASSES = tuple(Class(name, voc_color(id), (id - 1,)) for id, name in enumerate(NAMES, start=1) if name != "-")
IGNORE_ID = 255

LAYOUT = (
    "COCO as its zip files unpack: {train,val}2017/*.jpg (or images/{train,val}2017), "
    "stuffthingmaps/{train,val}2017/*.png (or annotations/{train,val}2017), annotations/captions_{train,val}2017.json"
)


class CocoStuffSource(FileSource):
    """COCO-Stuff, 171 classes; root holds train2017, val2017, stuffthingmaps and annotations."""

    kind: Literal["coco_stuff"] = "coco_stuff"
    splits: Annotated[tuple[Literal["train", "val"], ...], AfterValidator(each_once)] = ("train", "val")


class Said(NamedTuple):
    """What COCO says of a picture."""

    license: str | None
    origin: str | None
    caption: str | None
    boxes: str | None
    """As JSON, which takes a tenth of the memory."""


def entries(source: CocoStuffSource) -> Iterator[Entry | Rejection]:
    """One entry a picture, with its first caption, its licence, where it comes from and its objects' boxes, as far as
    COCO's JSON files are there.

    Holds what they say of a split in memory: some 250 MB for train. Raises UserError when a folder is missing or a JSON
    file is damaged.
    """
    root = check_root(source.root)
    for split in source.splits:
        pictures = _first(root, f"{split}2017", f"images/{split}2017")
        maps = _first(root, f"stuffthingmaps/{split}2017", f"annotations/{split}2017")
        expect(source, [pictures, maps], LAYOUT)
        said = _said(root / "annotations", f"{split}2017")
        for item in paired(source, pictures, split, {"label": (maps, ".png")}):
            if isinstance(item, Entry):
                item = _described(item, said.get(item.name.rpartition("/")[2]))
            yield item


def _first(root: Path, *folders: str) -> str:
    """The first of these that is a folder, or else the first."""
    return next((folder for folder in folders if (root / folder).is_dir()), folders[0])


def _described(item: Entry, said: Said | None) -> Entry:
    if said is None:
        return item
    scalars = {"license": said.license, "origin": said.origin}
    item = item._replace(scalars={name: value for name, value in scalars.items() if value is not None})
    if said.caption is not None:
        item = item.with_caption(said.caption)
    return item if said.boxes is None else item.with_boxes(json.loads(said.boxes))


def _said(folder: Path, split: str) -> dict[str, Said]:
    """File name → what COCO says of it."""
    licenses: dict[int, str] = {}
    pictures: dict[int, dict[str, Any]] = {}
    captions: dict[int, str] = {}
    names: dict[int, str] = {}
    objects: dict[int, list[str]] = {}
    for kind in ("captions", "instances"):
        path = folder / f"{kind}_{split}.json"
        if not path.is_file():
            continue
        try:
            for key, item in elements(path):
                match key:
                    case "licenses":
                        licenses[item["id"]] = item["url"]
                    case "images":
                        known = {name: item[name] for name in ("file_name", "license", "coco_url") if name in item}
                        pictures[item["id"]] = known
                        if kind == "instances":
                            objects[item["id"]] = []
                    case "categories":
                        names[item["id"]] = item["name"]
                    case "annotations" if kind == "captions":
                        captions.setdefault(item["image_id"], item["caption"])
                    case "annotations":
                        found = [item["category_id"], item["bbox"], bool(item.get("iscrowd"))]
                        objects.setdefault(item["image_id"], []).append(json.dumps(found))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: no {kind} as COCO has them ({error!r} in {key})") from None
    return {
        item["file_name"]: Said(
            licenses.get(item.get("license", -1)),
            item.get("coco_url"),
            captions.get(id),
            _boxes(objects.get(id), names),
        )
        for id, item in pictures.items()
    }


def _boxes(found: list[str] | None, names: dict[int, str]) -> str | None:
    # The names of categories come after the objects in COCO's files.
    if found is None:
        return None
    items = [json.loads(item) for item in found]
    return json.dumps(
        [{"label": names.get(id, str(id)), "bbox": bbox, "attributes": {"crowd": crowd}} for id, bbox, crowd in items]
    )
