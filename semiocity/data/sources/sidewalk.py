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
from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.files import check_root
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image", "label")
LOADER = "semiocity.data.sources.cells:load"
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("unlabeled", (0, 0, 0)),
    ("flat-road", (128, 64, 128)),
    ("flat-sidewalk", (244, 35, 232)),
    ("flat-crosswalk", (235, 235, 245)),
    ("flat-cyclinglane", (214, 96, 60)),
    ("flat-parkingdriveway", (250, 170, 160)),
    ("flat-railtrack", (230, 150, 140)),
    ("flat-curb", (196, 196, 196)),
    ("human-person", (220, 20, 60)),
    ("human-rider", (255, 0, 0)),
    ("vehicle-car", (0, 0, 142)),
    ("vehicle-truck", (0, 0, 70)),
    ("vehicle-bus", (0, 60, 100)),
    ("vehicle-tramtrain", (0, 80, 140)),
    ("vehicle-motorcycle", (0, 0, 230)),
    ("vehicle-bicycle", (119, 11, 32)),
    ("vehicle-caravan", (0, 30, 190)),
    ("vehicle-cartrailer", (60, 0, 110)),
    ("construction-building", (70, 70, 70)),
    ("construction-door", (150, 90, 40)),
    ("construction-wall", (102, 102, 156)),
    ("construction-fenceguardrail", (190, 153, 153)),
    ("construction-bridge", (150, 100, 100)),
    ("construction-tunnel", (150, 120, 90)),
    ("construction-stairs", (110, 80, 120)),
    ("object-pole", (153, 153, 153)),
    ("object-trafficsign", (220, 220, 0)),
    ("object-trafficlight", (250, 170, 30)),
    ("nature-vegetation", (107, 142, 35)),
    ("nature-terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("void-ground", (81, 0, 81)),
    ("void-dynamic", (111, 74, 0)),
    ("void-static", (30, 60, 50)),
    ("void-unclear", (170, 200, 40)),
)
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
