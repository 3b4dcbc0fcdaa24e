"""COCO-Stuff 164k: COCO's `train2017/NAME.jpg` with `stuffthingmaps/train2017/NAME.png`, and COCO's captions.

H. Caesar, J. Uijlings, V. Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018; T.-Y. Lin et al.,
"Microsoft COCO: Common Objects in Context", ECCV 2014. Label maps hold COCO's ids less one (0 to 181, of which eleven
never occur), 255 for unlabelled. Colours are PASCAL VOC's colour map at COCO's ids, which are all distinct.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator

from semiocity.data.keys import to_bytes
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


def entries(source: CocoStuffSource) -> Iterator[Entry | Rejection]:
    """One entry a picture, with its first caption, its licence and where it comes from, where COCO's JSON has it.

    Holds the pictures and first captions of a split in memory: some 100 MB for train. Raises UserError when a folder is
    missing or a JSON file is damaged.
    """
    root = check_root(source.root)
    for split in source.splits:
        pictures = _first(root, f"{split}2017", f"images/{split}2017")
        maps = _first(root, f"stuffthingmaps/{split}2017", f"annotations/{split}2017")
        expect(source, [pictures, maps], LAYOUT)
        said = _said(root / "annotations" / f"captions_{split}2017.json")
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
    if said.caption is None:
        return item
    return item._replace(extra={"caption": said.caption}, sizes={**item.sizes, "caption": len(to_bytes(said.caption))})


def _said(path: Path) -> dict[str, Said]:
    """File name → what COCO says of it; empty when there is no such file."""
    if not path.is_file():
        return {}
    licenses: dict[int, str] = {}
    pictures: dict[int, dict[str, Any]] = {}
    captions: dict[int, str] = {}
    try:
        for key, item in elements(path):
            match key:
                case "licenses":
                    licenses[item["id"]] = item["url"]
                case "images":
                    pictures[item["id"]] = {
                        name: item[name] for name in ("file_name", "license", "coco_url") if name in item
                    }
                case "annotations":
                    captions.setdefault(item["image_id"], item["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no captions as COCO has them ({error!r} in {key})") from None
    return {
        item["file_name"]: Said(licenses.get(item.get("license", -1)), item.get("coco_url"), captions.get(id))
        for id, item in pictures.items()
    }
