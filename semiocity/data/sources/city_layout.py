"""The words for a generated street: what stands where, in metres, without any colour.

World axes: x to the right, y up, z away from the camera; the ground is y = 0. A layout says everything that a label
map shows (`city_streets` makes it); how it looks is decided in `city_paint`, from another stream of the same key.

Only additions, multiplications, divisions and raw Philox words are used, so that every machine gets the same numbers:
the distributions of `numpy.random.Generator` may change between releases, the words of a bit generator may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Kind(IntEnum):
    """Class ids of the label map."""

    SKY = 0
    BUILDING = 1
    WINDOW = 2
    DOOR = 3
    TREE = 4
    ROAD = 5
    PAVEMENT = 6
    CAR = 7
    PERSON = 8
    POLE = 9
    CROSSING = 10
    GRASS = 11


class Dice:
    """Random numbers keyed by (seed, index, stream), from raw Philox words."""

    def __init__(self, seed: int, index: int, stream: int) -> None:
        key = np.array([seed, index], dtype=np.uint64)
        self._bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64))
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 random bits."""
        if not self._words:
            self._words = self._bits.random_raw(256).tolist()
        return self._words.pop()

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        return (self.word() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.unit() * count)

    def chance(self, share: float) -> bool:
        return self.unit() < share

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]


@dataclass(frozen=True)
class Camera:
    """Pinhole camera looking along +z. `focal`, `horizon` and `vanish` are shares of the image's shorter side,
    its height and its width."""

    x: float
    height: float
    focal: float
    horizon: float
    vanish: float


@dataclass(frozen=True)
class Panel:
    """A window or door: `a` runs along the face from its left or near end, `y` up from the ground, in metres."""

    kind: Kind
    a0: float
    a1: float
    y0: float
    y1: float
    awning: bool = False


@dataclass(frozen=True)
class Building:
    """A box. `side` holds the panels of the face towards the street (a = z - z0), `front` those of the face
    towards the camera (a = x - x0)."""

    ident: int
    x0: float
    x1: float
    z0: float
    z1: float
    height: float
    ground_floor: float
    rise: float  # of a pitched roof; 0 for a flat one
    chimney: float  # where on a pitched roof, as a share of its length; 0 for none
    side: tuple[Panel, ...]
    front: tuple[Panel, ...]

    @property
    def ridge_along_x(self) -> bool:
        """Whether the roof slopes to the camera, as in a row of fronts, and not to the side."""
        return not self.side


@dataclass(frozen=True)
class Patch:
    """A rectangle of ground."""

    kind: Kind
    x0: float
    x1: float
    z0: float
    z1: float


@dataclass(frozen=True)
class Thing:
    """A car, person, tree or pole standing at (x, z); `heading` is a unit vector (x, z) along its length."""

    kind: Kind
    ident: int
    x: float
    z: float
    size: float  # metres: length of a car, height of anything else
    heading: tuple[int, int]
    shape: int  # any 64 bits: which car body, pose, crown or lamp

    @property
    def is_traffic_light(self) -> bool:
        """One pole in four; the others are street lamps."""
        return self.kind is Kind.POLE and self.shape % 4 == 3


@dataclass(frozen=True)
class Layout:
    """All of a scene, in drawing order: ground as listed, then solids from far to near."""

    camera: Camera
    ground: tuple[Patch, ...]
    lines: tuple[Patch, ...]  # painted on the road, labelled as road
    kerbs: tuple[Patch, ...]
    solids: tuple[Building | Thing, ...]
