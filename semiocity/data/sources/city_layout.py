"""What stands where in a generated street: a pure function of (seed, index), in metres, without any colour.

World axes: x to the right, y up, z away from the camera; the ground is y = 0. Everything a label map shows is decided
here. How it looks (time of day, materials, light) is decided in `city_paint`, from another stream of the same key.

Only additions, multiplications, divisions and raw Philox words are used, so that every machine gets the same numbers:
the distributions of `numpy.random.Generator` may change between releases, the words of a bit generator may not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


NEAR = 0.3  # metres: nothing begins closer to the camera's plane
FAR = 400.0


class _Count:
    """Instance ids, from 1."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


def _panels(dice: Dice, length: float, floors: int, ground_floor: float, storey: float) -> tuple[Panel, ...]:
    """Rows of windows, one door and sometimes a shop front."""
    bays = max(1, int(length / dice.between(3.0, 3.8)))
    pitch = length / bays
    half = pitch * dice.between(0.27, 0.33)
    sill, head = dice.between(0.2, 0.28), dice.between(0.8, 0.88)
    door, shop = dice.below(bays), dice.chance(0.4)
    awning = shop and dice.chance(0.6)
    panels = []
    for bay in range(bays):
        middle = (bay + 0.5) * pitch
        if bay == door:
            panels.append(Panel(Kind.DOOR, middle - 0.95, middle + 0.95, 0.0, ground_floor * 0.8))
        elif shop:
            low, high = middle - pitch * 0.42, middle + pitch * 0.42
            panels.append(Panel(Kind.WINDOW, low, high, 0.6, ground_floor * 0.78, awning))
        else:
            panels.append(Panel(Kind.WINDOW, middle - half, middle + half, ground_floor * 0.3, ground_floor * 0.8))
        for floor in range(1, floors):
            base = ground_floor + (floor - 1) * storey
            panels.append(Panel(Kind.WINDOW, middle - half, middle + half, base + sill * storey, base + head * storey))
    return tuple(panels)


def _building(dice: Dice, count: _Count, box: tuple[float, float, float, float], floors: int, faces: str) -> Building:
    """A building on the footprint `box` (x0, x1, z0, z1) with panels on its `faces`: "side", "front" or "both"."""
    x0, x1, z0, z1 = box
    ground_floor, storey = dice.between(3.4, 4.0), dice.between(3.0, 3.5)
    height = ground_floor + (floors - 1) * storey + 0.5
    rise = dice.between(1.8, 3.0) if dice.chance(0.45) else 0.0
    chimney = dice.between(0.15, 0.85) if dice.chance(0.6) else 0.0
    side = _panels(dice, z1 - z0, floors, ground_floor, storey) if faces != "front" else ()
    front = _panels(dice, x1 - x0, floors, ground_floor, storey) if faces != "side" else ()
    return Building(count.next(), x0, x1, z0, z1, height, ground_floor, rise, chimney, side, front)


def _row_of_houses(dice: Dice, count: _Count, start: float, end: float, z: float, mean_floors: int) -> list[Building]:
    """Frontal buildings side by side at depth `z`, from x = start to end."""
    row, x = [], start
    while x < end:
        width = dice.between(6.5, 12.0)
        floors = max(1, mean_floors + dice.below(3) - 1)
        row.append(_building(dice, count, (x, x + width, z, z + 9.0), floors, "front"))
        x += width + (dice.between(2.0, 4.0) if dice.chance(0.2) else 0.0)
    return row


def _avenue(dice: Dice) -> Layout:
    """A street that runs away from the camera, closed by a row of houses or open to the sky."""
    count = _Count()
    road = dice.between(3.4, 5.2)
    camera = Camera(
        x=road * dice.between(-0.5, 0.5),
        height=dice.between(1.7, 2.9),
        focal=dice.between(0.72, 0.95),
        horizon=dice.between(0.46, 0.58),
        vanish=dice.between(0.38, 0.62),
    )
    end = dice.between(28.0, 48.0)
    mean_floors = 2 + dice.below(4)
    ground = [Patch(Kind.PAVEMENT, -90.0, 90.0, NEAR, FAR), Patch(Kind.GRASS, -90.0, 90.0, end + 4.0, FAR)]
    ground.append(Patch(Kind.ROAD, -90.0, 90.0, end - 9.0, end - 3.0))
    ground.append(Patch(Kind.ROAD, -road, road, NEAR, end - 3.0))
    kerbs: list[Patch] = []
    solids: list[Building | Thing] = []

    def put(kind: Kind, x: float, z: float, size: float, heading: tuple[int, int] = (0, 1)) -> None:
        solids.append(Thing(kind, count.next(), x, z, size, heading, dice.word()))

    parking = road > 4.0
    crossing = dice.between(4.6, 8.0) if dice.chance(0.55) else None
    if crossing is not None:
        ground.append(Patch(Kind.CROSSING, -road, road, crossing, crossing + dice.between(3.0, 4.0)))
    lines = [
        Patch(Kind.ROAD, -0.12, 0.12, z, z + 2.0)
        for z in np.arange(2.0, end - 9.0, 4.5).tolist()
        if crossing is None or not crossing - 2.4 < z < crossing + 4.4
    ]
    if crossing is not None:
        lines.append(Patch(Kind.ROAD, 0.2, road, crossing - 1.0, crossing - 0.6))
    for side in (-1, 1):
        pavement, verge = dice.between(2.0, 3.6), dice.between(1.6, 2.8)
        order = dice.pick(("pavement", "verge first", "garden"))
        planted = dice.chance(0.7)
        edge = road + pavement + (0.0 if order == "pavement" else verge)
        strip = (road, road + verge) if order == "verge first" else (road + pavement, edge)
        walk = road + pavement / 2 + (verge if order == "verge first" else 0.0)
        if order != "pavement":
            low, high = sorted((side * strip[0], side * strip[1]))
            ground.append(Patch(Kind.GRASS, low, high, NEAR, end - 9.0))
        low, high = sorted((side * road, side * (road + 0.25)))
        kerbs.append(Patch(Kind.PAVEMENT, low, high, NEAR, end - 9.0))

        z, gap = NEAR, False
        while z < end - 12.0:
            length = dice.between(7.0, 13.0)
            floors = max(2, mean_floors + dice.below(3) - 1)
            low, high = sorted((side * edge, side * (edge + 10.0)))
            box = (low, high, z, min(z + length, end - 9.0))
            solids.append(_building(dice, count, box, floors, "both" if gap else "side"))
            z, gap = z + length, dice.chance(0.2)
            if gap:
                width = dice.between(3.0, 6.0)
                low, high = sorted((side * edge, side * (edge + 40.0)))
                ground.append(Patch(Kind.GRASS, low, high, z, z + width))
                put(Kind.TREE, side * (edge + 2.5), z + width / 2, dice.between(5.0, 7.5))
                z += width

        spacing, row = dice.between(7.0, 10.0), (strip[0] + strip[1]) / 2 if order == "verge first" else road + 0.8
        first = dice.between(5.5, 8.5)
        for step in range(4):
            z = first + step * spacing
            if planted and z < end - 10.0:
                put(Kind.TREE, side * row, z, dice.between(4.6, 6.8))
            if step < 2 and dice.chance(0.65):
                put(Kind.POLE, side * (road + 0.5), z - spacing * 0.45, 5.6)
        for _ in range(1 + dice.below(3)):
            x = side * (walk + dice.between(-0.7, 0.7))
            z = camera.focal * abs(x - camera.x) / dice.between(0.24, 0.46)  # where the picture shows this x
            put(Kind.PERSON, x, max(4.0, min(z, 13.0)), dice.between(1.6, 1.9))
        if parking:
            slot = dice.between(4.2, 8.0)
            while slot < end - 14.0:
                free = crossing is None or not crossing - 3.0 < slot < crossing + 6.0
                if free and dice.chance(0.5):
                    put(Kind.CAR, side * (road - 1.05), slot + 2.1, dice.between(3.9, 4.6), (0, side))
                slot += dice.between(5.4, 7.0)
        lane = side * (road * 0.25 + 0.35 if parking else road * 0.5)
        if dice.chance(0.45):
            start = 13.0 if crossing is not None else 6.5
            put(Kind.CAR, lane, dice.between(start, start + 14.0), dice.between(3.9, 4.6), (0, side))
    if crossing is not None and dice.chance(0.7):
        put(Kind.PERSON, dice.between(-road, road) * 0.8, crossing + 1.5, dice.between(1.6, 1.9), (1, 0))

    if dice.chance(0.75):
        solids += _row_of_houses(dice, count, -32.0, 32.0, end, mean_floors)
    else:
        for step in range(11):
            put(Kind.TREE, -32.0 + step * 6.4 + dice.between(-1.0, 1.0), end + dice.between(0.0, 4.0), 7.0)
    return Layout(camera, tuple(ground), tuple(lines), tuple(kerbs), _far_to_near(camera, solids))


def _row(dice: Dice) -> Layout:
    """House fronts seen square on, with a street across the picture."""
    count = _Count()
    depth = dice.between(13.0, 18.0)
    camera = Camera(
        x=dice.between(-4.0, 4.0),
        height=dice.between(2.2, 3.4),
        focal=dice.between(0.85, 1.1),
        horizon=dice.between(0.5, 0.6),
        vanish=0.5,
    )
    pavement = dice.between(2.0, 3.2)
    garden = dice.between(1.5, 2.5) if dice.chance(0.5) else 0.0
    kerb = depth - garden - pavement
    near = kerb - dice.between(6.0, 7.0)
    ground = [
        Patch(Kind.GRASS, -90.0, 90.0, NEAR, FAR),
        Patch(Kind.PAVEMENT, -90.0, 90.0, kerb, depth - garden),
        Patch(Kind.PAVEMENT, -90.0, 90.0, near - 1.6, near),
        Patch(Kind.ROAD, -90.0, 90.0, near, kerb),
    ]
    kerbs = [Patch(Kind.PAVEMENT, -90.0, 90.0, kerb, kerb + 0.25)]
    crossing = dice.between(-4.5, 1.5) + camera.x if dice.chance(0.5) else None
    if crossing is not None:
        ground.append(Patch(Kind.CROSSING, crossing, crossing + 3.4, near, kerb))
    middle = (near + kerb) / 2
    lines = [
        Patch(Kind.ROAD, x, x + 2.0, middle - 0.09, middle + 0.09)
        for x in np.arange(-60.0, 60.0, 4.5).tolist()
        if crossing is None or not crossing - 2.4 < x < crossing + 3.8
    ]
    start = -44.0 + dice.between(0.0, 8.0)
    solids: list[Building | Thing] = [*_row_of_houses(dice, count, start, 40.0, depth, 2 + dice.below(2))]

    def put(kind: Kind, x: float, z: float, size: float, heading: tuple[int, int] = (1, 0)) -> None:
        solids.append(Thing(kind, count.next(), x, z, size, heading, dice.word()))

    x = dice.between(-24.0, -20.0)
    while x < 24.0:
        put(dice.pick((Kind.TREE, Kind.POLE)), x, kerb + 0.7, dice.between(4.4, 5.6))
        x += dice.between(3.5, 7.0)
    for z, way, share in ((kerb - 1.6, -1, 0.5), (near + 1.6, 1, 0.25)):
        x = dice.between(-24.0, -18.0)
        while x < 24.0:
            free = crossing is None or not crossing - 2.8 < x < crossing + 6.2
            if free and dice.chance(share):
                put(Kind.CAR, x, z, dice.between(3.9, 4.6), (way, 0))
            x += dice.between(6.0, 9.0)
    for _ in range(1 + dice.below(4)):
        put(Kind.PERSON, camera.x + dice.between(-7.0, 7.0), dice.between(kerb + 0.4, depth - garden - 0.3), 1.75)
    if crossing is not None and dice.chance(0.6):
        put(Kind.PERSON, crossing + dice.between(0.6, 2.8), dice.between(near + 0.5, kerb), 1.75, (0, 1))
    return Layout(camera, tuple(ground), tuple(lines), tuple(kerbs), _far_to_near(camera, solids))


def _far_to_near(camera: Camera, solids: list[Building | Thing]) -> tuple[Building | Thing, ...]:
    """Drawing order. A building counts by its far end: whatever stands in the street beside it is drawn later, whatever
    stands in a gap behind it earlier. Equal depths are drawn from the edges of the picture inwards."""

    def order(solid: Building | Thing) -> tuple[float, float, int]:
        if isinstance(solid, Building):
            return -solid.z1, -abs((solid.x0 + solid.x1) / 2 - camera.x), solid.ident
        return -solid.z, -abs(solid.x - camera.x), solid.ident

    return tuple(sorted(solids, key=order))


def layout(seed: int, index: int) -> Layout:
    """The scene (seed, index): three streets in perspective to one row of fronts."""
    dice = Dice(seed, index, stream=0)
    build: Callable[[Dice], Layout] = _avenue if dice.chance(0.75) else _row
    return build(dice)
