"""segments/sidewalk-semantic as the Hub has it: data/train-*.parquet with `pixel_values` and `label`.

1,000 photographs from the pavements of Belgian cities (segments.ai, 2021), label maps in 35 classes of which 0 is
"unlabeled". Names and ids are those of the Hub's id2label.json; the colours are ours, since the palette that is passed
around gives several classes one colour.

The Hub has one split, `train`. The split published here: a row is val when the hash of `train/INDEX` (five digits, the
row's number as `datasets` counts) falls below `val_fraction`, see `keys.fraction_of`. It depends on nothing else, so
that everybody who packs the set has the same two parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from semiocity.data.keys import fraction_of
from semiocity.data.sources import columnar
from semiocity.data.sources.base import Entry, FileSource, Rejection, class_table
from semiocity.data.sources.files import check_root
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image", "label")
LOADER = "semiocity.data.sources.cells:opened"
CLASSES = class_table("""
     0    0   0   0   -  unlabeled
     1  128  64 128   0  flat-road
     2  244  35 232   1  flat-sidewalk
     3  235 235 245   2  flat-crosswalk
     4  214  96  60   3  flat-cyclinglane
     5  250 170 160   4  flat-parkingdriveway
     6  230 150 140   5  flat-railtrack
     7  196 196 196   6  flat-curb
     8  220  20  60   7  human-person
     9  255   0   0   8  human-rider
    10    0   0 142   9  vehicle-car
    11    0   0  70  10  vehicle-truck
    12    0  60 100  11  vehicle-bus
    13    0  80 140  12  vehicle-tramtrain
    14    0   0 230  13  vehicle-motorcycle
    15  119  11  32  14  vehicle-bicycle
    16    0  30 190  15  vehicle-caravan
    17   60   0 110  16  vehicle-cartrailer
    18   70  70  70  17  construction-building
    19  150  90  40  18  construction-door
    20  102 102 156  19  construction-wall
    21  190 153 153  20  construction-fenceguardrail
    22  150 100 100  21  construction-bridge
    23  150 120  90  22  construction-tunnel
    24  110  80 120  23  construction-stairs
    25  153 153 153  24  object-pole
    26  220 220   0  25  object-trafficsign
    27  250 170  30  26  object-trafficlight
    28  107 142  35  27  nature-vegetation
    29  152 251 152  28  nature-terrain
    30   70 130 180  29  sky
    31   81   0  81  30  void-ground
    32  111  74   0  31  void-dynamic
    33   30  60  50  32  void-static
    34  170 200  40  33  void-unclear
""")
"""All are trained on; "unlabeled" is not scored."""
IGNORE_ID = 255
"""Occurs in no label map of the set: padding, where a recipe letterboxes."""

IMAGE, LABEL = "pixel_values", "label"


class SidewalkSource(FileSource):
    """The dataset's folder as fetched from the Hub; root holds data/train-00000-of-….parquet."""

    kind: Literal["sidewalk"] = "sidewalk"
    val_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    """The published split has 0.1."""


def entries(source: SidewalkSource) -> Iterator[Entry | Rejection]:
    """One entry a row. Raises UserError when the folder holds no such parquet files."""
    check_root(source.root)
    wanted = {IMAGE: "root", LABEL: "root"}
    index = 0
    for found in _files(source):
        if isinstance(found, Rejection):
            yield found
            continue
        table = columnar.open_table(source, found)
        columnar.check_columns(table, wanted, source.root)
        sizes = {"image": table.mean_bytes[IMAGE], "label": table.mean_bytes[LABEL]}
        for row in range(table.rows):
            id = f"train/{index:05d}"
            split = "val" if fraction_of(id, "split") < source.val_fraction else "train"
            extra = {"file": found.name, "size": found.size, "row": row, "cells": {"image": IMAGE, "label": LABEL}}
            yield Entry(id, {}, sizes, split, extra, {"origin": f"segments/sidewalk-semantic {id}"})
            index += 1


def _files(source: SidewalkSource) -> Iterator[columnar.Found | Rejection]:
    below = "data" if (source.root / "data").is_dir() else ""
    names = 0
    for found in columnar.find(source, below, ("parquet",)):
        name = found.id if isinstance(found, Rejection) else found.name
        if name.rpartition("/")[2].startswith("train-"):
            names += 1
            yield found
    if not names:
        raise UserError(
            f"source.root: {source.root} has no data/train-*.parquet; fetch it with "
            "`hf download --repo-type dataset segments/sidewalk-semantic --local-dir DIR`"
        )
