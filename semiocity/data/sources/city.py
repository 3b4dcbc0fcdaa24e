"""Generated street scenes with label and instance maps: the data set that needs no download.

A scene is a pure function of (seed, index): the same street at every size, the same bytes in every process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semiocity.data.sources.city_layout import Dice, Kind
from semiocity.data.sources.city_paint import paint
from semiocity.data.sources.city_streets import layout
from semiocity.errors import UserError

VERSION = 1  # raised whenever the bytes of a scene would change

CLASSES: tuple[str, ...] = tuple(kind.name.lower() for kind in Kind)
PALETTE: tuple[tuple[int, int, int], ...] = (
    (70, 130, 180),  # sky
    (110, 90, 90),  # building
    (90, 220, 240),  # window
    (150, 60, 0),  # door
    (20, 110, 40),  # tree
    (128, 64, 128),  # road
    (244, 35, 232),  # pavement
    (0, 0, 190),  # car
    (220, 20, 60),  # person
    (250, 200, 0),  # pole
    (255, 255, 255),  # crossing
    (152, 251, 152),  # grass
)


@dataclass(frozen=True)
class Scene:
    """A street in `time` = "day", "dusk" or "night"."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    label: np.ndarray  # uint8 [H, W], index into CLASSES
    instance: np.ndarray  # uint16 [H, W]; 0 = none; each car, person, tree, pole and building from 1
    time: str


def scene(seed: int, index: int, width: int, height: int) -> Scene:
    """The scene (seed, index), `width` x `height` pixels.

    Raises UserError unless both sizes are multiples of 8 from 32 to 1024, and seed and index fit in 64 bits.
    """
    for name, size in (("width", width), ("height", height)):
        if size % 8 or not 32 <= size <= 1024:
            raise UserError(f"city: {name} = {size} is not a multiple of 8 from 32 to 1024")
    for name, number in (("seed", seed), ("index", index)):
        if not 0 <= number < 2**64:
            raise UserError(f"city: {name} = {number} is not a whole number from 0 to 2**64 - 1")
    image, label, instance, time = paint(layout(seed, index), Dice(seed, index, stream=1), width, height)
    return Scene(image, label, instance, time)
