"""CamVid as its authors publish it (`701_StillsRaw_full/NAME.png` with `LabeledApproved_full/NAME_L.png`), and in the
form that SegNet made common (`train/NAME.png` with `trainannot/NAME.png`, the same for val and test).

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: a high-definition ground truth database",
Pattern Recognition Letters 30(2), 2009; 11 classes as in V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet", TPAMI
39(12), 2017. Pictures may be JPEG as well.

The published maps are in 32 colours, which are read as SegNet's 11 classes unless the recipe says label.encoding =
"colors" and names classes of its own (`shards/camvid-32.toml`). There is no published split: a picture is of the split
that SegNet's folders put it into, which follows from its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from semiocity.data.sources.base import Entry, FileSource, Raw, Rejection, class_table
from semiocity.data.sources.files import check_root
from semiocity.data.sources.paired import expect, paired

VERSION = 1
FIELDS = ("image", "label")
CLASSES = class_table("""
     0  128 128 128   -  sky
     1  128   0   0   -  building
     2  192 192 128   -  pole
     3  128  64 128   -  road
     4   60  40 222   -  pavement
     5  128 128   0   -  tree
     6  192 128 128   -  sign
     7   64  64 128   -  fence
     8   64   0 128   -  car
     9   64  64   0   -  pedestrian
    10    0 128 192   -  bicyclist
""")
IGNORE_ID = 11
SPLITS = ("train", "val", "test")
LOADER = "semiocity.data.sources.camvid:load"

PICTURES, MAPS, ENDING = "701_StillsRaw_full", "LabeledApproved_full", "_L.png"
COLORS: dict[tuple[int, int, int], int] = {
    (int(red), int(green), int(blue)): int(own)
    for own, red, green, blue, _name in map(
        str.split,
        """
     0  128 128 128  Sky
     1  192   0 128  Archway
     1    0 128  64  Bridge
     1  128   0   0  Building
     1   64   0  64  Tunnel
     1   64 192   0  Wall
     2  192 192 128  Column_Pole
     2    0   0  64  TrafficCone
     3  128  64 128  Road
     3  128   0 192  LaneMkgsDriv
     3  192   0  64  LaneMkgsNonDriv
     4    0   0 192  Sidewalk
     4   64 192 128  ParkingBlock
     4  128 128 192  RoadShoulder
     5  128 128   0  Tree
     5  192 192   0  VegetationMisc
     6  192 128 128  SignSymbol
     6  128 128  64  Misc_Text
     6    0  64  64  TrafficLight
     7   64  64 128  Fence
     8   64   0 128  Car
     8   64 128 192  SUVPickupTruck
     8  192 128 192  Truck_Bus
     8  192  64 128  Train
     8  128  64  64  OtherMoving
     9   64  64   0  Pedestrian
     9  192 128  64  Child
     9   64   0 192  CartLuggagePram
     9   64 128  64  Animal
    10    0 128 192  Bicyclist
    10  192   0 192  MotorcycleScooter
    11    0   0   0  Void
""".strip().splitlines(),
    )
}
"""Published colour → id in SegNet's maps."""
DUSK_TEST, DAY_VAL = 8550, range(7959, 8160)
"""Frames of the films 0001TP and 0016E5: the first that is tested on, and those that are validated on."""


class CamvidSource(FileSource):
    """CamVid; root holds 701_StillsRaw_full and LabeledApproved_full, or train, trainannot, val, valannot."""

    kind: Literal["camvid"] = "camvid"


def entries(source: CamvidSource) -> Iterator[Entry | Rejection]:
    """One entry a picture of the splits that are there. Raises UserError when the folder is no CamVid, or lacks the
    label maps of pictures that are there."""
    root = check_root(source.root)
    if (root / PICTURES).is_dir():
        expect(source, (PICTURES, MAPS), f"CamVid's layout: {PICTURES}/ with {MAPS}/")
        for item in paired(source, PICTURES, "", {"label": (MAPS, ENDING)}):
            yield item._replace(split=split_of(item.id)) if isinstance(item, Entry) else item
        return
    layout = f"CamVid's layout: {PICTURES}/ with {MAPS}/; or SegNet's: train/ with trainannot/, and val and test alike"
    there = [split for split in SPLITS if split == "train" or (root / split).is_dir()]
    expect(source, [folder for split in there for folder in (split, f"{split}annot")], layout)
    for split in there:
        yield from paired(source, split, split, {"label": (f"{split}annot", ".png")})


def split_of(id: str) -> str:
    """The split that SegNet put a published picture into: 367 train, 101 val, 233 test."""
    film, _, frame = id.rpartition("/")[2].partition("_")
    number = int(frame.lstrip("f")) if frame.lstrip("f").isdecimal() else -1
    if film == "Seq05VD" or (film == "0001TP" and number >= DUSK_TEST):
        return "test"
    return "val" if film == "0016E5" and number in DAY_VAL else "train"


def load(source: CamvidSource, entry: Entry) -> Raw:
    """The bytes of the entry's files, and what the colours of a published map mean."""
    from semiocity.data.sources import plain

    raw = plain.load(source, entry)
    if entry.files.get("label", "").startswith(f"{MAPS}/"):
        raw.label_colors = COLORS
    return raw
