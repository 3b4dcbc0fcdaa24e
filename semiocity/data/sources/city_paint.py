"""How a street looks: draws a `Layout` from the sky down to the nearest car."""

from __future__ import annotations

import numpy as np
from PIL import Image

from semiocity.data.sources.city_canvas import CIRCLE, HAZE_M, Canvas, Colour, Point, mix, roll, share
from semiocity.data.sources.city_layout import Building, Dice, Kind, Layout, Patch, Thing
from semiocity.data.sources.city_things import draw_thing
from semiocity.data.sources.city_walls import draw_building

GROUND: dict[Kind, Colour] = {
    Kind.ROAD: (92, 94, 102),
    Kind.PAVEMENT: (192, 184, 172),
    Kind.GRASS: (112, 170, 62),
    Kind.CROSSING: (92, 94, 102),
}


def paint(layout: Layout, dice: Dice, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Image uint8 [H,W,3], class ids uint8 [H,W], instance ids uint16 [H,W] and the time of day."""
    canvas = Canvas(layout.camera, dice, width, height)
    draw_sky(canvas)
    draw_ground(canvas, layout)
    for solid in layout.solids:
        if isinstance(solid, Building):
            draw_building(canvas, solid)
        else:
            draw_thing(canvas, solid)
    return *canvas.finish(), canvas.time


# --- sky


def draw_sky(canvas: Canvas) -> None:
    top, middle, low = (np.array(stop, dtype=np.float32) for stop in canvas.light.sky)
    rows = np.linspace(0.0, 1.0, max(2, int(canvas.cy)), dtype=np.float32)[:, None]
    upper, lower = top + (middle - top) * (rows / 0.55), middle + (low - middle) * ((rows - 0.55) / 0.45)
    column = Image.fromarray(np.where(rows < 0.55, upper, lower).astype(np.uint8)[:, None, :])
    canvas.image.paste(column.resize((canvas.w, column.height), Image.Resampling.NEAREST), (0, 0))
    if canvas.time == "night":
        _stars(canvas)
    elif canvas.time == "dusk":
        sun = canvas.cx + canvas.sun_side * canvas.unit * (0.06 + 0.2 * share(roll(canvas.salt, 8)))
        height = canvas.cy - 0.1 * canvas.unit
        for radius, alpha, blur in ((0.3, 110, 0.1), (0.045, 255, 0.008)):
            disc = [(sun + radius * canvas.unit * c, height + radius * canvas.unit * s) for c, s in CIRCLE]
            canvas.soft([disc], (255, 232, 160), alpha, blur)
    _clouds(canvas)


def _stars(canvas: Canvas) -> None:
    for star in range(60):
        x = roll(canvas.salt, star, 1) % 4096 / 4096 * canvas.w
        y = roll(canvas.salt, star, 2) % 4096 / 4096 * canvas.cy * 0.8
        size = canvas.unit / (500 + roll(canvas.salt, star, 3) % 500)
        canvas.disc(x, y, size, size, (214, 218, 240))
    x, y, size = canvas.w * (0.25 + 0.5 * share(roll(canvas.salt, 3))), canvas.cy * 0.2, canvas.unit * 0.034
    canvas.disc(x, y, size, size, (248, 242, 216))
    canvas.glow(x, y, size * 1.6, (64.0, 62.0, 60.0), int(Kind.SKY))


def _clouds(canvas: Canvas) -> None:
    body: list[list[Point]] = []
    for cloud in range(5):
        x = share(roll(canvas.salt, cloud, 4)) * canvas.w
        y = share(roll(canvas.salt, cloud, 5)) * canvas.cy * 0.75
        scale = (0.6 + 0.7 * share(roll(canvas.salt, cloud, 6))) * canvas.unit
        for puff in range(7):
            r = (0.022 + 0.03 * share(roll(canvas.salt, cloud, puff, 7)) - 0.004 * abs(puff - 3)) * scale
            middle = x + (puff - 3) * 0.038 * scale
            body.append([(middle + r * 1.3 * c, y + (r if s < 0 else r * 0.35) * s) for c, s in CIRCLE])
    low = 0.014 * canvas.unit
    shade = mix(canvas.light.cloud, canvas.light.sky[0], 0.3)
    canvas.soft([[(x, y + low) for x, y in puff] for puff in body], shade, 150, 0.009)
    canvas.soft(body, canvas.light.cloud, 225, 0.006)


# --- ground


def _flat(canvas: Canvas, patch: Patch) -> list[Point]:
    x0, x1, z0, z1 = patch.x0, patch.x1, patch.z0, patch.z1
    return [canvas.at(x0, 0.0, z0), canvas.at(x1, 0.0, z0), canvas.at(x1, 0.0, z1), canvas.at(x0, 0.0, z1)]


def _pool(canvas: Canvas, x: float, z: float, rx: float, rz: float) -> list[Point]:
    """An ellipse on the ground."""
    z = max(z, rz + 0.6)
    return [canvas.at(x + rx * c, 0.0, z + rz * s) for c, s in CIRCLE]


def draw_ground(canvas: Canvas, layout: Layout) -> None:
    for patch in layout.ground:
        canvas.fill(_flat(canvas, patch), canvas.colour(GROUND[patch.kind], 0.6, 0.0), int(patch.kind))
        if patch.kind is Kind.CROSSING:
            _stripes(canvas, patch)
        elif patch.kind is Kind.PAVEMENT and patch.x1 - patch.x0 < 400:
            _slabs(canvas, patch)
    for patch in layout.lines:
        canvas.fill(_flat(canvas, patch), canvas.colour((230, 226, 210), 0.6, 0.0))
    for patch in layout.kerbs:
        canvas.fill(_flat(canvas, patch), canvas.colour((222, 218, 210), 0.7, 0.0))
    _ground_haze(canvas)
    _shadows(canvas, layout)
    if canvas.time != "day":
        _light_pools(canvas, layout)


def _stripes(canvas: Canvas, patch: Patch) -> None:
    """The bars of a crossing, along the way that the cars go."""
    white = canvas.colour((248, 246, 240), 0.7, 0.0)
    across = patch.x1 - patch.x0 > patch.z1 - patch.z0
    start, end = (patch.x0, patch.x1) if across else (patch.z0, patch.z1)
    bars = max(3, int((end - start) / 1.1))
    step = (end - start) / bars
    for i in range(bars):
        low, high = start + (i + 0.22) * step, start + (i + 0.78) * step
        box = (low, high, patch.z0, patch.z1) if across else (patch.x0, patch.x1, low, high)
        canvas.fill(_flat(canvas, Patch(patch.kind, *box)), white)


def _slabs(canvas: Canvas, patch: Patch) -> None:
    """Joints between paving stones, as far as they are wider than a few pixels."""
    joint = canvas.colour((160, 152, 142), 0.6, 0.0)
    step = 1.25
    z = max(1.0, int(patch.z0 / step) * step)
    far = min(patch.z1, 16.0)
    while z < far and canvas.focal * canvas.camera.height * (1 / z - 1 / (z + step)) > 4 * canvas.fine:
        if z > patch.z0:
            canvas.line(canvas.at(max(patch.x0, -24.0), 0.0, z), canvas.at(min(patch.x1, 24.0), 0.0, z), joint)
        z += step
    if z > patch.z0 + step:
        for i in range(-19, 20):
            if patch.x0 < i * step < patch.x1:
                canvas.line(canvas.at(i * step, 0.0, max(1.0, patch.z0)), canvas.at(i * step, 0.0, min(z, far)), joint)


def _ground_haze(canvas: Canvas) -> None:
    """Every row below the horizon is one depth, so the air in front of the ground is a column of numbers."""
    start = int(canvas.cy) + 1
    rows = np.arange(start, canvas.h, dtype=np.float32)
    depth = np.float32(canvas.focal * canvas.camera.height) / (rows + np.float32(0.5 - canvas.cy))
    mask = Image.fromarray((255.0 * depth / (depth + np.float32(HAZE_M))).astype(np.uint8)[:, None])
    canvas.image.paste(canvas.light.haze, (0, start), mask.resize((canvas.w, len(rows)), Image.Resampling.NEAREST))


def _shadows(canvas: Canvas, layout: Layout) -> None:
    """Of houses across the street while the sun is up, and below everything that stands on the ground."""
    cast: list[list[Point]] = []
    below: list[list[Point]] = []
    for solid in layout.solids:
        if isinstance(solid, Thing):
            below.append(_shadow_of(canvas, solid))
        elif canvas.time != "night" and solid.side and solid.x0 * canvas.sun_side > 0:
            wall = solid.x0 if canvas.sun_side > 0 else solid.x1
            reach = -canvas.sun_side * 0.3 * solid.height
            low, high = sorted((wall, wall + reach))
            cast.append(_flat(canvas, Patch(Kind.ROAD, low, high, solid.z0, solid.z1)))
    canvas.soft(cast, (14, 14, 40), canvas.light.shadow, 0.004, top=canvas.cy)
    canvas.soft(below, (10, 10, 30), canvas.light.shadow + 85, 0.007, top=canvas.cy)


def _shadow_of(canvas: Canvas, thing: Thing) -> list[Point]:
    match thing.kind:
        case Kind.CAR:
            length, breadth = thing.size / 2 + 0.15, 1.05
            rx, rz = (length, breadth) if thing.heading[0] else (breadth, length)
            return _pool(canvas, thing.x, thing.z, rx, rz)
        case Kind.TREE:
            return _pool(canvas, thing.x - canvas.sun_side * 0.8, thing.z, 1.7, 1.1)
        case _:
            return _pool(canvas, thing.x - canvas.sun_side * 0.25, thing.z, 0.55, 0.3)


def _light_pools(canvas: Canvas, layout: Layout) -> None:
    """Below street lamps and in front of cars."""
    pools: list[list[Point]] = []
    for solid in layout.solids:
        if isinstance(solid, Building):
            continue
        if solid.kind is Kind.POLE and solid.z > 4.0 and not solid.is_traffic_light:
            pools.append(_pool(canvas, solid.x, solid.z, 2.0, 2.0))
        elif solid.kind is Kind.CAR:
            ahead = solid.size * 0.5 + 1.6
            x, z = solid.x + ahead * solid.heading[0], solid.z + ahead * solid.heading[1]
            if z > 3.5:
                pools.append(_pool(canvas, x, z, *((1.9, 0.8) if solid.heading[0] else (1.1, 1.9))))
    canvas.soft(pools, (255, 214, 140), 84 if canvas.time == "night" else 40, 0.025, top=canvas.cy)
