"""CamVid in the form that SegNet made common: `train/NAME.png` with `trainannot/NAME.png`, the same for val and test.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: a high-definition ground truth database",
Pattern Recognition Letters 30(2), 2009; 11 classes as in V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet", TPAMI
39(12), 2017.
Pictures may be JPEG as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from semiocity.data.sources.base import Entry, FileSource, Rejection, class_table
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


class CamvidSource(FileSource):
    """CamVid, 11 classes; root holds train, trainannot, val, valannot."""

    kind: Literal["camvid"] = "camvid"


def entries(source: CamvidSource) -> Iterator[Entry | Rejection]:
    """One entry a picture of the splits that are there. Raises UserError when the folder is no CamVid."""
    root = expect(source, ("train", "trainannot"), "CamVid's layout: train/ with trainannot/, and val and test alike")
    for split in SPLITS:
        if (root / split).is_dir() and (root / f"{split}annot").is_dir():
            yield from paired(source, split, split, {"label": (f"{split}annot", ".png")})
