"""How the buildings of a generated street look: roofs, walls, windows, doors and awnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semiocity.data.sources.city_canvas import Canvas, Colour, Point, between, mix, roll, share
from semiocity.data.sources.city_layout import Building, Kind, Panel

WALLS: tuple[Colour, ...] = (
    (184, 88, 70), (226, 206, 168), (220, 166, 94), (200, 118, 88), (172, 164, 156), (232, 178, 158),
    (164, 184, 150), (238, 230, 216), (212, 190, 134), (158, 104, 82), (196, 152, 174), (216, 140, 108),
)  # fmt: skip
BRICK = {0, 3, 9, 11}  # walls with courses of brick
ROOFS: tuple[Colour, ...] = ((156, 74, 56), (98, 84, 86), (128, 66, 54), (86, 92, 102))
DOORS: tuple[Colour, ...] = ((166, 26, 34), (18, 104, 70), (128, 66, 26), (186, 84, 16), (126, 28, 92))
AWNINGS: tuple[Colour, ...] = ((206, 46, 50), (36, 124, 92), (44, 88, 160), (220, 140, 40))
FLOWERS: tuple[Colour, ...] = ((236, 60, 90), (250, 220, 80), (230, 130, 220))
GLASS: Colour = (70, 110, 148)
FRAMES: tuple[Colour, ...] = ((242, 238, 228), (242, 238, 228), (66, 58, 58))
DARK: Colour = (24, 16, 30)
SMALLEST = 0.018  # narrower windows and doors, as a share of the picture's shorter side, are left out of every size
FRONT_SUN = 0.55


@dataclass(frozen=True)
class Wall:
    """One visible side of a building."""

    building: Building
    panels: Sequence[Panel]
    length: float  # metres
    gable: bool
    sun: float  # 1 in full sun, 0 in shade
    on: Callable[[float, float], Point]  # metres along and up the wall to pixels
    off: Callable[[float, float], Point]  # the same, jutting out over the pavement
    width_px: Callable[[Panel], float]
    word: int

    @property
    def code(self) -> int:
        return int(Kind.BUILDING) + 16 * self.building.ident

    @property
    def z(self) -> float:
        return self.building.z0 + 1.5

    def box(self, a0: float, y0: float, a1: float, y1: float) -> list[Point]:
        return [self.on(a0, y0), self.on(a1, y0), self.on(a1, y1), self.on(a0, y1)]


def draw_building(canvas: Canvas, b: Building) -> None:
    """A box with a roof; the wall along the street first, then the one that faces the camera."""
    word = roll(canvas.salt, b.ident)
    near_x = b.x0 if canvas.camera.x < b.x0 else b.x1
    _draw_roof(canvas, b, near_x, word)
    if not b.x0 <= canvas.camera.x <= b.x1:
        _draw_wall(canvas, _street_wall(canvas, b, near_x, word))
    _draw_wall(canvas, _front_wall(canvas, b, word))


def _street_wall(canvas: Canvas, b: Building, x: float, word: int) -> Wall:
    sunny = (x == b.x1) == (canvas.sun_side > 0)
    out = x + (0.9 if x == b.x1 else -0.9)

    def width_px(panel: Panel) -> float:
        """Pixels on a wall seen edgeways; 0 right beside the camera."""
        z0, z1 = b.z0 + panel.a0, b.z0 + panel.a1
        return canvas.focal * abs(x - canvas.camera.x) * (1 / z0 - 1 / z1) / canvas.fine if z0 > 0.8 else 0.0

    return Wall(
        building=b,
        panels=b.side,
        length=b.z1 - b.z0,
        gable=b.ridge_along_x,
        sun=1.0 if sunny else 0.12,
        on=lambda a, y: canvas.at(x, y, b.z0 + a),
        off=lambda a, y: canvas.at(out, y, b.z0 + a),
        width_px=width_px,
        word=word,
    )


def _front_wall(canvas: Canvas, b: Building, word: int) -> Wall:
    return Wall(
        building=b,
        panels=b.front,
        length=b.x1 - b.x0,
        gable=not b.ridge_along_x,
        sun=FRONT_SUN,
        on=lambda a, y: canvas.at(b.x0 + a, y, b.z0),
        off=lambda a, y: canvas.at(b.x0 + a, y, max(0.4, b.z0 - 0.9)),
        width_px=lambda panel: canvas.pixels(panel.a1 - panel.a0, b.z0),
        word=word,
    )


def _draw_roof(canvas: Canvas, b: Building, near_x: float, word: int) -> None:
    """The slope on the street's side of a pitched roof, and the chimney behind it."""
    if not b.rise:
        return
    code = int(Kind.BUILDING) + 16 * b.ident
    ridge, mid_x, mid_z = b.height + b.rise, (b.x0 + b.x1) / 2, (b.z0 + b.z1) / 2
    if b.chimney:
        x = b.x0 + b.chimney * (b.x1 - b.x0) if b.ridge_along_x else mid_x
        z = mid_z if b.ridge_along_x else b.z0 + b.chimney * (b.z1 - b.z0)
        brick = canvas.colour((150, 84, 66), 0.5, z)
        for half, low, high, tone in ((0.5, -1.0, 1.0, brick), (0.62, 0.9, 1.2, mix(brick, DARK, 0.3))):
            stack = (
                (x - half, ridge + low),
                (x + half, ridge + low),
                (x + half, ridge + high),
                (x - half, ridge + high),
            )
            canvas.fill([canvas.at(px, py, z) for px, py in stack], tone, code)
    if b.ridge_along_x:
        eaves = canvas.at(b.x0, b.height, b.z0), canvas.at(b.x1, b.height, b.z0)
        top = canvas.at(b.x0, ridge, mid_z), canvas.at(b.x1, ridge, mid_z)
    else:
        eaves = canvas.at(near_x, b.height, b.z0), canvas.at(near_x, b.height, b.z1)
        top = canvas.at(mid_x, ridge, b.z0), canvas.at(mid_x, ridge, b.z1)
    tiles = canvas.colour(ROOFS[word // 16 % len(ROOFS)], 0.7, b.z0)
    canvas.fill([eaves[0], eaves[1], top[1], top[0]], tiles, code)
    if canvas.pixels(0.4, b.z0) > 4:
        for i in range(1, 8):
            part = i / 8
            canvas.line(between(eaves[0], top[0], part), between(eaves[1], top[1], part), mix(tiles, DARK, 0.25))


def _draw_wall(canvas: Canvas, wall: Wall) -> None:
    """Masonry, bands of stone, then doors and windows with their awnings."""
    b = wall.building
    outline = wall.box(0.0, 0.0, wall.length, b.height)
    if wall.gable and b.rise:
        outline.insert(3, wall.on(wall.length / 2, b.height + b.rise))
    if not canvas.sees(outline):
        return
    base = WALLS[wall.word % len(WALLS)]
    tone = canvas.colour(base, wall.sun, wall.z)
    canvas.fill(outline, tone, wall.code)
    if not wall.panels:
        return
    if wall.word % len(WALLS) in BRICK:
        _draw_bricks(canvas, wall, mix(tone, DARK, 0.16))
    canvas.veil(wall.box(0.0, 0.0, wall.length, 0.5), DARK, 70)
    if canvas.pixels(0.3, wall.z) > 0.5:
        pale = canvas.colour(mix(base, (255, 250, 240), 0.55), wall.sun, wall.z)
        for top in (b.ground_floor + 0.1, b.height):
            canvas.fill(wall.box(0.0, top - 0.32, wall.length, top), pale)
            canvas.veil(wall.box(0.0, top - 0.7, wall.length, top - 0.32), DARK, 50)
    for number, panel in enumerate(wall.panels):
        wide = wall.width_px(panel)
        corners = wall.box(panel.a0, panel.y0, panel.a1, panel.y1)
        if wide > SMALLEST * min(canvas.width, canvas.height) and canvas.sees(corners):
            draw = _draw_door if panel.kind is Kind.DOOR else _draw_window
            draw(canvas, wall, corners, wide, roll(wall.word, number))
            if panel.awning:
                _draw_awning(canvas, wall, panel)


def _draw_bricks(canvas: Canvas, wall: Wall, joint: Colour) -> None:
    course = 0.34
    size_px = canvas.pixels(course, wall.z)
    if size_px < 3.0:
        return
    for i in range(int(wall.building.height / course)):
        y = i * course
        canvas.line(wall.on(0.0, y), wall.on(wall.length, y), joint)
        if size_px > 4.5:
            for j in range(int(wall.length / 0.9)):
                a = (j + 0.5 * (i % 2)) * 0.9
                canvas.line(wall.on(a, y), wall.on(a, y + course), joint)


def _draw_awning(canvas: Canvas, wall: Wall, panel: Panel) -> None:
    """Striped cloth over a shop window; it belongs to the building."""
    cloth = AWNINGS[wall.word // 256 % len(AWNINGS)]
    top, low = panel.y1 + 0.35, panel.y1 - 0.35
    start, step = panel.a0 - 0.15, (panel.a1 - panel.a0 + 0.3) / 6
    for i in range(6):
        a0, a1 = start + i * step, start + (i + 1) * step
        tone = canvas.colour((244, 240, 230) if i % 2 else cloth, 0.7, wall.z)
        canvas.fill([wall.off(a0, low), wall.off(a1, low), wall.on(a1, top), wall.on(a0, top)], tone, wall.code)


def _inner(corners: Sequence[Point], u0: float, v0: float, u1: float, v1: float) -> list[Point]:
    """A part of a panel: u runs to its far or right end, v up; beyond 0 to 1 is beside it."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    points = []
    for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1)):
        low_x, low_y = ax + (bx - ax) * u, ay + (by - ay) * u
        points.append((low_x + (dx + (cx - dx) * u - low_x) * v, low_y + (dy + (cy - dy) * u - low_y) * v))
    return points


def _draw_door(canvas: Canvas, wall: Wall, corners: Sequence[Point], wide: float, word: int) -> None:
    paint, sun = DOORS[word % len(DOORS)], max(wall.sun, 0.3)
    canvas.fill(corners, canvas.colour(mix(paint, (20, 10, 10), 0.45), sun, wall.z), int(Kind.DOOR))
    leaf = canvas.colour(paint, sun, wall.z)
    canvas.fill(_inner(corners, 0.12, 0.0, 0.88, 0.93), leaf)
    if wide < 8:
        return
    groove = mix(leaf, (0, 0, 0), 0.28)
    pane = (255, 214, 130) if canvas.light.lit else canvas.colour(GLASS, 0.5, wall.z)
    for u in (0.19, 0.55):
        for v0, v1, tone in ((0.07, 0.34, groove), (0.42, 0.66, groove), (0.73, 0.88, pane)):
            canvas.fill(_inner(corners, u, v0, u + 0.26, v1), tone)
    canvas.fill(_inner(corners, 0.485, 0.0, 0.515, 0.93), groove)
    canvas.fill(_inner(corners, 0.53, 0.37, 0.58, 0.42), canvas.colour((246, 214, 120), 0.8, wall.z))


def _draw_window(canvas: Canvas, wall: Wall, corners: Sequence[Point], wide: float, word: int) -> None:
    frame = canvas.colour(FRAMES[word % 3], max(wall.sun, 0.3), wall.z)
    lit = share(word >> 8) < canvas.light.lit
    glass = mix((255, 204, 108), (255, 234, 176), word % 8 / 8) if lit else canvas.colour(GLASS, 0.3, wall.z)
    canvas.fill(corners, frame, int(Kind.WINDOW))
    canvas.fill(_inner(corners, 0.07, 0.05, 0.93, 0.95), glass)
    if wide < 5:
        return
    sky = (255, 250, 224) if lit else canvas.light.sky[1]
    canvas.veil(_inner(corners, 0.07, 0.48, 0.93, 0.95), sky, 85)
    if wide > 9:
        _dress_window(canvas, wall, corners, word, lit)
    canvas.fill(_inner(corners, 0.47, 0.05, 0.53, 0.95), frame)
    canvas.fill(_inner(corners, 0.07, 0.6, 0.93, 0.64), frame)
    canvas.fill(_inner(corners, -0.07, -0.07, 1.07, 0.0), canvas.colour((224, 218, 206), wall.sun, wall.z))
    canvas.veil(_inner(corners, -0.04, -0.12, 1.04, -0.07), DARK, 70)
    if wide > 9 and word >> 22 & 3 == 3:
        _draw_flowers(canvas, wall, corners, FLOWERS[word >> 24 & 1])


def _dress_window(canvas: Canvas, wall: Wall, corners: Sequence[Point], word: int, lit: bool) -> None:
    """Curtains behind every second window, reflections on dark ones."""
    if word >> 20 & 1:
        cloth = (214, 120, 70) if lit else canvas.colour((236, 232, 224), 0.5, wall.z)
        for u0, u1 in ((0.07, 0.25), (0.75, 0.93)):
            canvas.veil(_inner(corners, u0, 0.05, u1, 0.95), cloth, 150)
    if not lit:
        a, b, c, d = _inner(corners, 0.07, 0.05, 0.93, 0.95)
        streak = [between(d, c, 0.3), between(d, c, 0.6), between(a, b, 0.4), between(a, b, 0.1)]
        canvas.veil(streak, (255, 255, 255), 46 if canvas.time == "day" else 18)


def _draw_flowers(canvas: Canvas, wall: Wall, corners: Sequence[Point], bloom: Colour) -> None:
    """A window box."""
    canvas.fill(_inner(corners, 0.02, -0.07, 0.98, 0.03), canvas.colour((120, 76, 50), wall.sun, wall.z))
    for i in range(9):
        (x, y), _, (x1, y1), _ = _inner(corners, 0.04 + i * 0.1, 0.0, 0.14 + i * 0.1, 0.12)
        tone = canvas.colour(bloom if i % 2 else (70, 140, 60), 0.7, wall.z)
        canvas.disc((x + x1) / 2, (y + y1) / 2, abs(y1 - y) * 0.6, abs(y1 - y) * 0.6, tone)
