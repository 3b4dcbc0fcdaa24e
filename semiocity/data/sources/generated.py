"""The source `city` as a login node sees it: names, counts and classes, without the code that draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from semiocity.config import Strict
from semiocity.data.sources.base import Entry, Raw

VERSION = 1
"""Equal to city.VERSION."""
FIELDS = ("image", "label", "instance")
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (70, 130, 180)),
    ("building", (110, 90, 90)),
    ("window", (90, 220, 240)),
    ("door", (150, 60, 0)),
    ("tree", (20, 110, 40)),
    ("road", (128, 64, 128)),
    ("pavement", (244, 35, 232)),
    ("car", (0, 0, 190)),
    ("person", (220, 20, 60)),
    ("pole", (250, 200, 0)),
    ("crossing", (255, 255, 255)),
    ("grass", (152, 251, 152)),
)
"""Equal to city.CLASSES and city.PALETTE, which cannot be imported without numpy."""
IGNORE_ID = None
LOADER = "semiocity.data.sources.generated:load"
SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {"time": "str"}

SPLIT_STRIDE = 2**40
"""Scene number of the first row of the next split: no split's scenes move when another grows."""

Side = Annotated[int, Field(ge=32, le=1024, multiple_of=8)]


class CitySource(Strict):
    """Generated street scenes."""

    kind: Literal["city"] = "city"
    seed: int = Field(0, ge=0, lt=2**64)
    size: tuple[Side, Side] = (64, 64)
    """Width and height in pixels."""
    train: int = Field(256, ge=1, lt=SPLIT_STRIDE)
    """Rows of the split train."""
    val: int = Field(64, ge=0, lt=SPLIT_STRIDE)
    """Rows of the split val."""


def entries(source: CitySource) -> Iterator[Entry]:
    """One entry a scene."""
    for place, (split, count) in enumerate((("train", source.train), ("val", source.val))):
        for number in range(count):
            yield Entry(f"{split}/{number:08d}", {}, {}, split, {"index": place * SPLIT_STRIDE + number})


def load(source: CitySource, entry: Entry) -> Raw:
    """Draw the scene `entry.extra["index"]`."""
    from semiocity.data.sources.city import scene

    made = scene(source.seed, entry.extra["index"], *source.size)
    return Raw(made.image, made.label, made.instance, scalars={"time": made.time})
