"""Plans generated streets: a pure function from (seed, index) to a `Layout`.

To add a kind of street, write one more function from a `_Site` like `_avenue` and `_row`, and let `layout` choose it.
"""

from __future__ import annotations

import numpy as np

from semiocity.data.sources.city_layout import Building, Camera, Dice, Kind, Layout, Panel, Patch, Thing

NEAR = 0.3  # metres: nothing begins closer to the camera's plane
FAR = 400.0
WIDE = 90.0  # metres to either side: beyond every picture's edge


class _Site:
    """A street being built: whatever is put on it gets the next instance id, from 1."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.ground: list[Patch] = []
        self.lines: list[Patch] = []
        self.kerbs: list[Patch] = []
        self.solids: list[Building | Thing] = []

    def pave(self, kind: Kind, x0: float, x1: float, z0: float, z1: float) -> None:
        """A rectangle of ground; what lies behind the camera's plane would be seen upside down, and is cut off."""
        if z1 > NEAR:
            self.ground.append(Patch(kind, min(x0, x1), max(x0, x1), max(z0, NEAR), z1))

    def put(self, kind: Kind, x: float, z: float, size: float, heading: tuple[int, int] = (0, 1)) -> None:
        self.solids.append(Thing(kind, len(self.solids) + 1, x, z, size, heading, self.dice.word()))

    def build(self, x0: float, x1: float, z0: float, z1: float, floors: int, side: bool, front: bool) -> None:
        """A building with doors and windows on its `side` along the street, its `front` to the camera, or both."""
        dice = self.dice
        ground_floor, storey = dice.between(3.4, 4.0), dice.between(3.0, 3.5)
        self.solids.append(
            Building(
                ident=len(self.solids) + 1,
                x0=min(x0, x1),
                x1=max(x0, x1),
                z0=z0,
                z1=z1,
                height=ground_floor + (floors - 1) * storey + 0.5,
                ground_floor=ground_floor,
                rise=dice.between(1.8, 3.0) if dice.chance(0.45) else 0.0,
                chimney=dice.between(0.15, 0.85) if dice.chance(0.6) else 0.0,
                side=_panels(dice, z1 - z0, floors, ground_floor, storey) if side else (),
                front=_panels(dice, abs(x1 - x0), floors, ground_floor, storey) if front else (),
            )
        )

    def build_row(self, start: float, end: float, z: float, mean_floors: int) -> None:
        """Fronts side by side at depth `z`, from x = start to end."""
        x = start
        while x < end:
            width = self.dice.between(6.5, 12.0)
            floors = max(1, mean_floors + self.dice.below(3) - 1)
            self.build(x, x + width, z, z + 9.0, floors, side=False, front=True)
            x += width + (self.dice.between(2.0, 4.0) if self.dice.chance(0.2) else 0.0)

    def layout(self, camera: Camera) -> Layout:
        solids = sorted(self.solids, key=lambda solid: _drawing_order(camera, solid))
        return Layout(camera, tuple(self.ground), tuple(self.lines), tuple(self.kerbs), tuple(solids))


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
            panels.append(Panel(Kind.DOOR, middle - 1.1, middle + 1.1, 0.0, ground_floor * 0.82))
        elif shop:
            low, high = middle - pitch * 0.42, middle + pitch * 0.42
            panels.append(Panel(Kind.WINDOW, low, high, 0.6, ground_floor * 0.78, awning))
        else:
            panels.append(Panel(Kind.WINDOW, middle - half, middle + half, ground_floor * 0.3, ground_floor * 0.8))
        for floor in range(1, floors):
            base = ground_floor + (floor - 1) * storey
            panels.append(Panel(Kind.WINDOW, middle - half, middle + half, base + sill * storey, base + head * storey))
    return tuple(panels)


def _drawing_order(camera: Camera, solid: Building | Thing) -> tuple[float, float, int]:
    """Far to near. A building counts by its far end: whatever stands in the street beside it is drawn later, whatever
    stands in a gap behind it earlier. Equal depths are drawn from the edges of the picture inwards."""
    if isinstance(solid, Building):
        return -solid.z1, -abs((solid.x0 + solid.x1) / 2 - camera.x), solid.ident
    return -solid.z, -abs(solid.x - camera.x), solid.ident


# --- a street that runs away from the camera


def _avenue(site: _Site) -> Layout:
    """One-point perspective, closed by a row of houses or open to trees and sky."""
    dice = site.dice
    road = dice.between(3.4, 5.2)  # half its width
    camera = Camera(
        x=road * dice.between(-0.5, 0.5),
        height=dice.between(1.7, 2.9),
        focal=dice.between(0.72, 0.95),
        horizon=dice.between(0.46, 0.58),
        vanish=dice.between(0.38, 0.62),
    )
    end = dice.between(28.0, 48.0)
    mean_floors = 2 + dice.below(4)
    site.pave(Kind.PAVEMENT, -WIDE, WIDE, NEAR, FAR)
    site.pave(Kind.GRASS, -WIDE, WIDE, end + 4.0, FAR)
    site.pave(Kind.ROAD, -WIDE, WIDE, end - 9.0, end - 3.0)
    site.pave(Kind.ROAD, -road, road, NEAR, end - 3.0)
    crossing = dice.between(4.6, 8.0) if dice.chance(0.55) else None
    if crossing is not None:
        site.pave(Kind.CROSSING, -road, road, crossing, crossing + dice.between(3.0, 4.0))
        site.lines.append(Patch(Kind.ROAD, 0.2, road, crossing - 1.0, crossing - 0.6))
    for z in np.arange(2.0, end - 9.0, 4.5).tolist():
        if crossing is None or not crossing - 2.4 < z < crossing + 4.4:
            site.lines.append(Patch(Kind.ROAD, -0.12, 0.12, z, z + 2.0))
    for side in (-1, 1):
        _roadside(site, camera, side, road, end, mean_floors)
        _traffic(site, side, road, end, crossing)
    if crossing is not None and dice.chance(0.7):
        site.put(Kind.PERSON, dice.between(-road, road) * 0.8, crossing + 1.5, dice.between(1.7, 2.0))
    if dice.chance(0.75):
        site.build_row(-32.0, 32.0, end, mean_floors)
    else:
        for step in range(11):
            x = -32.0 + step * 6.4 + dice.between(-1.0, 1.0)
            site.put(Kind.TREE, x, end + dice.between(0.0, 4.0), dice.between(6.0, 7.5))
    return site.layout(camera)


def _roadside(site: _Site, camera: Camera, side: int, road: float, end: float, mean_floors: int) -> None:
    """Pavement, grass, houses, trees, lamps and walkers on the left (-1) or right (1)."""
    dice = site.dice
    pavement, verge = dice.between(2.0, 3.6), dice.between(1.6, 2.8)
    match dice.pick(("bare", "verge", "garden")):
        case "bare":
            edge, walk, trees = road + pavement, road + pavement / 2, road + 0.8
        case "verge":  # between road and pavement
            edge, walk, trees = road + verge + pavement, road + verge + pavement / 2, road + verge / 2
            site.pave(Kind.GRASS, side * road, side * (road + verge), NEAR, end - 9.0)
        case _:  # between pavement and houses
            edge, walk, trees = road + pavement + verge, road + pavement / 2, road + 0.8
            site.pave(Kind.GRASS, side * (road + pavement), side * edge, NEAR, end - 9.0)
    low, high = sorted((side * road, side * (road + 0.25)))
    site.kerbs.append(Patch(Kind.PAVEMENT, low, high, NEAR, end - 9.0))
    _houses(site, side, edge, end, mean_floors)

    planted, spacing, first = dice.chance(0.7), dice.between(7.0, 10.0), dice.between(5.5, 8.5)
    for step in range(4):
        z = first + step * spacing
        if planted and z < end - 10.0:
            site.put(Kind.TREE, side * trees, z, dice.between(4.6, 6.8))
        if step < 2 and dice.chance(0.65):
            site.put(Kind.POLE, side * (road + 0.5), z - spacing * 0.45, 5.6)
    for _ in range(1 + dice.below(3)):
        x = side * (walk + dice.between(-0.7, 0.7))
        z = camera.focal * abs(x - camera.x) / dice.between(0.28, 0.46)  # where the picture shows this x
        site.put(Kind.PERSON, x, max(4.0, min(z, 11.5)), dice.between(1.7, 2.0))


def _houses(site: _Site, side: int, edge: float, end: float, mean_floors: int) -> None:
    """A terrace along x = edge, with a tree on grass in its gaps."""
    dice = site.dice
    z, gap = NEAR, False
    while z < end - 12.0:
        length = dice.between(7.0, 13.0)
        floors = max(2, mean_floors + dice.below(3) - 1)
        far = min(z + length, end - 9.0)
        site.build(side * edge, side * (edge + 10.0), z, far, floors, side=True, front=gap)
        z, gap = z + length, dice.chance(0.2)
        if gap:
            width = dice.between(3.0, 6.0)
            site.pave(Kind.GRASS, side * edge, side * (edge + 40.0), z, z + width)
            site.put(Kind.TREE, side * (edge + 2.5), z + width / 2, dice.between(5.0, 7.5))
            z += width


def _traffic(site: _Site, side: int, road: float, end: float, crossing: float | None) -> None:
    """Cars parked along the kerb of a wide road, and one in the lane; they keep right and off the crossing."""
    dice = site.dice
    parking = road > 4.0
    slot = dice.between(4.2, 8.0)
    while parking and slot < end - 14.0:
        free = crossing is None or not crossing - 3.0 < slot < crossing + 6.0
        if free and dice.chance(0.5):
            site.put(Kind.CAR, side * (road - 1.05), slot + 2.1, dice.between(3.9, 4.6), (0, side))
        slot += dice.between(5.4, 7.0)
    if dice.chance(0.45):
        lane = road * 0.25 + 0.15 if parking else road * 0.5
        z = dice.between(0.0, 14.0) + (6.5 if crossing is None else 13.0)
        site.put(Kind.CAR, side * lane, z, dice.between(3.9, 4.6), (0, side))


# --- fronts seen square on


def _row(site: _Site) -> Layout:
    """House fronts, with a street across the picture."""
    dice = site.dice
    depth = dice.between(14.5, 18.5)
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
    site.pave(Kind.GRASS, -WIDE, WIDE, NEAR, FAR)
    site.pave(Kind.PAVEMENT, -WIDE, WIDE, kerb, depth - garden)
    site.pave(Kind.PAVEMENT, -WIDE, WIDE, near - 1.6, near)
    site.pave(Kind.ROAD, -WIDE, WIDE, near, kerb)
    site.kerbs.append(Patch(Kind.PAVEMENT, -WIDE, WIDE, kerb, kerb + 0.25))
    crossing = camera.x + dice.between(-4.5, 1.5) if dice.chance(0.5) else None
    if crossing is not None:
        site.pave(Kind.CROSSING, crossing, crossing + 3.4, near, kerb)
    middle = (near + kerb) / 2
    for x in np.arange(-60.0, 60.0, 4.5).tolist():
        if crossing is None or not crossing - 2.4 < x < crossing + 3.8:
            site.lines.append(Patch(Kind.ROAD, x, x + 2.0, middle - 0.09, middle + 0.09))
    site.build_row(dice.between(-44.0, -36.0), 40.0, depth, 2 + dice.below(2))

    x = dice.between(-24.0, -20.0)
    while x < 24.0:
        site.put(dice.pick((Kind.TREE, Kind.POLE)), x, kerb + 0.7, dice.between(4.4, 5.6))
        x += dice.between(3.5, 7.0)
    for z, way, share in ((kerb - 1.6, -1, 0.5), (near + 1.6, 1, 0.25)):
        x = dice.between(-24.0, -18.0)
        while x < 24.0:
            free = crossing is None or not crossing - 2.8 < x < crossing + 6.2
            if free and dice.chance(share):
                site.put(Kind.CAR, x, z, dice.between(3.9, 4.6), (way, 0))
            x += dice.between(6.0, 9.0)
    for _ in range(1 + dice.below(4)):
        x, z = camera.x + dice.between(-7.0, 7.0), dice.between(kerb + 0.4, depth - garden - 0.3)
        site.put(Kind.PERSON, x, z, dice.between(1.7, 2.0))
    if crossing is not None and dice.chance(0.6):
        x, z = crossing + dice.between(0.6, 2.8), dice.between(near + 0.5, kerb)
        site.put(Kind.PERSON, x, z, dice.between(1.7, 2.0))
    return site.layout(camera)


def layout(seed: int, index: int) -> Layout:
    """The scene (seed, index): three streets in perspective to one row of fronts."""
    site = _Site(Dice(seed, index, stream=0))
    return _avenue(site) if site.dice.chance(0.75) else _row(site)
