"""Cityscapes: `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` with `gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016; classes, colours and train
ids as in the dataset's own scripts. The colours of classes 1 to 4 and 18, which are others' there too, are our own.
Ids of instances are class id · 1000 + number; what is below 1000 is no instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator

from semiocity.data.sources.base import Entry, FileSource, Raw, Rejection, class_table, each_once
from semiocity.data.sources.paired import expect, paired

VERSION = 1
FIELDS = ("image", "label", "instance")
CLASSES = class_table("""
     0    0   0   0   -  unlabeled
     1   20   0   0   -  ego vehicle
     2    0  20   0   -  rectification border
     3    0   0  20   -  out of roi
     4   20  20  20   -  static
     5  111  74   0   -  dynamic
     6   81   0  81   -  ground
     7  128  64 128   0  road
     8  244  35 232   1  sidewalk
     9  250 170 160   -  parking
    10  230 150 140   -  rail track
    11   70  70  70   2  building
    12  102 102 156   3  wall
    13  190 153 153   4  fence
    14  180 165 180   -  guard rail
    15  150 100 100   -  bridge
    16  150 120  90   -  tunnel
    17  153 153 153   5  pole
    18  153 153 190   -  polegroup
    19  250 170  30   6  traffic light
    20  220 220   0   7  traffic sign
    21  107 142  35   8  vegetation
    22  152 251 152   9  terrain
    23   70 130 180  10  sky
    24  220  20  60  11  person
    25  255   0   0  12  rider
    26    0   0 142  13  car
    27    0   0  70  14  truck
    28    0  60 100  15  bus
    29    0   0  90   -  caravan
    30    0   0 110   -  trailer
    31    0  80 100  16  train
    32    0   0 230  17  motorcycle
    33  119  11  32  18  bicycle
""")
IGNORE_ID = 255
SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {"city": "str"}
LOADER = "semiocity.data.sources.cityscapes:load"

FIRST_INSTANCE = 1000

LAYOUT = (
    "Cityscapes as its zip files unpack: leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
    "gtFine/{train,val}/CITY/*_gtFine_labelIds.png and *_gtFine_instanceIds.png"
)


class CityscapesSource(FileSource):
    """Cityscapes, 34 classes of which 19 are scored; root holds leftImg8bit and gtFine."""

    kind: Literal["cityscapes"] = "cityscapes"
    splits: Annotated[tuple[Literal["train", "val", "test", "train_extra"], ...], AfterValidator(each_once)] = (
        "train",
        "val",
    )
    """test: the published label maps say nothing but where the car and the picture's border are. train_extra: the
    19,998 pictures that have coarse label maps only."""
    labels: Literal["fine", "coarse"] = "fine"
    """coarse: gtCoarse instead of gtFine; train_extra is always read from there."""


def entries(source: CityscapesSource) -> Iterator[Entry | Rejection]:
    """One entry a picture. Raises UserError when a folder is missing."""
    kinds = {s: "gtCoarse" if s == "train_extra" or source.labels == "coarse" else "gtFine" for s in source.splits}
    expect(source, [f"{top}/{s}" for s, kind in kinds.items() for top in ("leftImg8bit", kind)], LAYOUT)
    for split, kind in kinds.items():
        below = f"{kind}/{split}"
        parallel = {"label": (below, f"_{kind}_labelIds.png"), "instance": (below, f"_{kind}_instanceIds.png")}
        for item in paired(source, f"leftImg8bit/{split}", split, parallel, ending="_leftImg8bit"):
            yield item._replace(scalars={"city": item.id.split("/")[2]}) if isinstance(item, Entry) else item


def load(source: CityscapesSource, entry: Entry) -> Raw:
    """The bytes of the entry's files."""
    from semiocity.data.sources import plain

    raw = plain.load(source, entry)
    raw.first_instance = FIRST_INSTANCE
    return raw
