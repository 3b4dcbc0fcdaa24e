"""How cars, trees, people and poles of a generated street look."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from semiocity.data.sources.city_canvas import CIRCLE, Canvas, Colour, Point, between, mix, roll
from semiocity.data.sources.city_layout import Kind, Thing

CARS: tuple[Colour, ...] = (
    (206, 36, 40), (36, 90, 190), (240, 240, 236), (52, 56, 66), (240, 186, 30), (60, 160, 170), (150, 156, 164),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (226, 50, 64), (250, 200, 50), (50, 110, 220), (244, 244, 244), (240, 110, 30), (120, 70, 190), (240, 110, 170),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((36, 48, 96), (66, 60, 66), (130, 104, 76))
SKIN: tuple[Colour, ...] = ((244, 206, 176), (204, 154, 118), (136, 92, 66))
HAIR: tuple[Colour, ...] = ((58, 38, 28), (34, 30, 32), (176, 120, 60), (120, 60, 30))
LEAVES: tuple[Colour, ...] = ((74, 142, 54), (98, 154, 50), (56, 126, 64), (122, 156, 46))
METAL: Colour = (54, 60, 68)

Place = Callable[[float, float, float], Point]  # a car's own metres (along, up, right) to pixels
Corner = tuple[float, float, float]
Inset = Callable[[float, float, float, float], list[Point]]  # a part of a face, as shares of its width and height
Face = tuple[str, Inset, list[Point]]  # name, what gives its parts, outline


def draw_thing(canvas: Canvas, thing: Thing) -> None:
    """A car, tree, person or pole."""
    match thing.kind:
        case Kind.TREE:
            tree(canvas, thing)
        case Kind.CAR:
            car(canvas, thing)
        case Kind.PERSON:
            person(canvas, thing)
        case _:
            pole(canvas, thing)


def code_of(thing: Thing) -> int:
    return int(thing.kind) + 16 * thing.ident


def tree(canvas: Canvas, t: Thing) -> None:
    """A trunk and a crown of overlapping discs, lit from the sun's side and from above."""
    code, word = code_of(t), roll(canvas.salt, t.ident)
    unit = canvas.focal / t.z
    x, foot = canvas.at(t.x, 0.0, t.z)
    half, fork = max(0.15 * unit, 0.011 * canvas.unit), foot - 0.5 * t.size * unit
    bark = canvas.colour((112, 82, 58), 0.5, t.z)
    canvas.fill([(x - half, foot), (x + half, foot), (x + half * 0.7, fork), (x - half * 0.7, fork)], bark, code)
    shade = [(x, foot), (x + half, foot), (x + half * 0.7, fork), (x, fork)]
    canvas.veil(shade if canvas.sun_side < 0 else [(2 * x - px, py) for px, py in shade], (20, 10, 20), 70)

    leaf = LEAVES[word % len(LEAVES)]
    tall = 0.3 * t.size * unit
    broad = tall * (0.78, 1.0, 1.12)[t.shape % 3]
    middle = foot - 0.66 * t.size * unit
    blobs = [(0.0, 0.0, 0.75)]
    for i in range(8):
        c, s = CIRCLE[2 * i]
        blobs.append((c * 0.55, s * 0.6, 0.38 + (t.shape >> (4 * i + 4)) % 16 / 80))
    tones = [
        canvas.colour(mix(leaf, (8, 34, 26), 0.5), 0.2, t.z),
        canvas.colour(mix(leaf, (10, 40, 24), 0.22), 0.4, t.z),
        canvas.colour(leaf, 0.6, t.z),
        canvas.colour(mix(leaf, (226, 232, 90), 0.22), 1.0, t.z),
    ]
    for dx, dy, r in blobs:
        canvas.disc(x + dx * broad, middle + dy * tall, r * broad, r * tall, tones[0], code)
    for step, (shift, size) in enumerate(((0.06, 0.84), (0.16, 0.66)), start=1):
        left, up = shift * canvas.sun_side * broad, -shift * tall
        for dx, dy, r in blobs:
            canvas.disc(x + dx * broad + left, middle + dy * tall + up, r * size * broad, r * size * tall, tones[step])
    radius_px = tall / canvas.fine
    if radius_px > 9:
        leaves, size = min(420, int(radius_px * 5)), max(tall * 0.04, 0.8 * canvas.fine)
    else:
        leaves, size = 4, tall * 0.16
    for i in range(leaves):
        draw = roll(word, i)
        dx, dy, r = blobs[draw % len(blobs)]
        u, v = (draw >> 4) % 1024 / 512 - 1.0, (draw >> 14) % 1024 / 512 - 1.0
        if u * u + v * v > 0.85:
            continue
        dx, dy = dx + u * r * 0.95, dy + v * r * 0.95
        bright = (dx * canvas.sun_side * 0.7 - dy) * 1.6 + 1.7 + (draw >> 24) % 64 / 40 - 0.8
        canvas.disc(x + dx * broad, middle + dy * tall, size, size * 0.7, tones[min(3, max(0, int(bright)))])


def pole(canvas: Canvas, t: Thing) -> None:
    """A street lamp or a traffic light."""
    code = code_of(t)
    unit = canvas.focal / t.z
    x, foot = canvas.at(t.x, 0.0, t.z)
    half = max(0.09 * unit, 0.0165 * canvas.unit)
    top = foot - (0.6 if t.is_traffic_light else 1.0) * t.size * unit
    metal = canvas.colour(METAL, 0.4, t.z)

    def post(w0: float, y0: float, w1: float, y1: float, colour: Colour, mark: bool = True) -> None:
        """An upright trapezium of half widths `w0` below and `w1` above."""
        points = [(x - w0, y0), (x + w0, y0), (x + w1, y1), (x - w1, y1)]
        canvas.fill(points, colour, code if mark else None)

    post(half, foot, half * 0.85, top, metal)
    post(half * 1.7, foot, half, foot - 0.55 * unit, metal)
    canvas.fill(
        [(x - half * 0.5, foot), (x, foot), (x, top), (x - half * 0.4, top)], canvas.colour((100, 108, 118), 0.6, t.z)
    )
    head = max(0.3 * unit, half * 1.7)
    if t.is_traffic_light:
        post(head * 0.85, top, head * 0.85, top - head * 3.9, metal)
        on = roll(canvas.salt, t.ident) % 3
        for i, lamp in enumerate(((50, 220, 110), (255, 200, 40), (250, 50, 44))):
            y = top - head * (0.7 + 1.25 * i)
            shown = lamp if i == on else mix(lamp, (20, 20, 24), 0.75)
            canvas.disc(x, y, head * 0.5, head * 0.5, shown)
            if i == on and canvas.time != "day":
                canvas.glow(x, y, head * 0.7, (lamp[0] * 0.4, lamp[1] * 0.4, lamp[2] * 0.4), code)
        return
    post(head * 0.6, top, head, top - head * 1.6, metal)
    lamp = (255, 238, 186) if canvas.time != "day" else canvas.colour((236, 236, 226), 0.5, t.z)
    post(head * 0.45, top - head * 0.2, head * 0.8, top - head * 1.4, lamp, mark=False)
    canvas.fill(
        [(x - head * 1.25, top - head * 1.5), (x + head * 1.25, top - head * 1.5), (x, top - head * 2.3)], metal, code
    )
    if canvas.time != "day":
        canvas.glow(x, top - head * 0.8, 0.75 * unit, (150.0, 112.0, 54.0), code)


def person(canvas: Canvas, t: Thing) -> None:
    """A walker seen from the front, or from behind with hair all round."""
    code, word = code_of(t), roll(canvas.salt, t.ident)
    unit = canvas.focal / t.z * t.size / 1.75
    x, foot = canvas.at(t.x, 0.0, t.z)
    stride = 0.08 + t.shape % 8 / 60
    shirt = canvas.colour(CLOTHES[word % len(CLOTHES)], 0.8, t.z)
    legs = canvas.colour(TROUSERS[word // 8 % 3], 0.5, t.z)
    skin = canvas.colour(SKIN[word // 32 % 3], 0.7, t.z)
    hair = canvas.colour(HAIR[word // 128 % 4], 0.5, t.z)
    shoe = canvas.colour((40, 34, 36), 0.4, t.z)
    sleeve = mix(shirt, (0, 0, 0), 0.18)

    def part(points: list[Point], colour: Colour) -> None:
        canvas.fill([(x + 1.15 * dx * unit, foot - y * unit) for dx, y in points], colour, code)

    for way in (-1, 1):
        ankle = way * stride
        part([(ankle - 0.09, 0.05), (ankle + 0.09, 0.05), (way * 0.1 + 0.1, 0.9), (way * 0.1 - 0.1, 0.9)], legs)
        part([(ankle - 0.1, 0.0), (ankle + 0.11, 0.0), (ankle + 0.1, 0.09), (ankle - 0.1, 0.09)], shoe)
        hand = way * (0.3 + stride * 0.3)
        part([(way * 0.2, 1.42), (way * 0.27, 1.38), (hand + 0.05, 0.86), (hand - 0.06, 0.86)], sleeve)
        part([(hand - 0.05, 0.87), (hand + 0.05, 0.87), (hand + 0.04, 0.77), (hand - 0.04, 0.77)], skin)
    part(
        [
            (-0.21, 0.78),
            (0.21, 0.78),
            (0.2, 1.1),
            (0.26, 1.36),
            (0.12, 1.47),
            (-0.12, 1.47),
            (-0.26, 1.36),
            (-0.2, 1.1),
        ],
        shirt,
    )
    part([(-0.06, 1.42), (0.06, 1.42), (0.06, 1.52), (-0.06, 1.52)], skin)
    canvas.disc(x, foot - 1.63 * unit, 0.14 * unit, 0.165 * unit, hair, code)
    if t.shape >> 8 & 1:
        canvas.disc(x, foot - 1.59 * unit, 0.105 * unit, 0.125 * unit, skin, code)
    elif t.shape >> 9 & 1:
        pack = mix(CLOTHES[word // 512 % len(CLOTHES)], (60, 50, 40), 0.4)
        part([(-0.17, 0.92), (0.17, 0.92), (0.15, 1.36), (-0.15, 1.36)], canvas.colour(pack, 0.6, t.z))


def car(canvas: Canvas, t: Thing) -> None:
    """A body and a cabin: hatchback, estate or van."""
    paint = CARS[roll(canvas.salt, t.ident) % len(CARS)]
    hx, hz = t.heading

    def place(along: float, y: float, right: float) -> Point:
        return canvas.at(t.x + along * hx + right * hz, y, max(0.4, t.z + along * hz - right * hx))

    half, style = t.size / 2, t.shape % 3
    roof = (1.42, 1.5, 1.8)[style]
    back, front = ((-0.32, 0.14), (-0.45, 0.16), (-0.47, 0.3))[style]
    shell = partial(_frustum, canvas, t, place)
    under = shell((-half + 0.1, half - 0.1, 0.8), 0.08, (-half + 0.1, half - 0.1, 0.8), 0.3)
    for _, _, points in under:
        canvas.fill(points, (20, 20, 26), code_of(t))
    for name, inset, points in shell((-half, half, 0.88), 0.24, (-half + 0.06, half - 0.08, 0.86), 0.86):
        canvas.fill(points, canvas.colour(paint, _facing(name), t.z), code_of(t))
        if name in ("left", "right"):
            _flank(canvas, t, place, inset, -0.89 if name == "left" else 0.89)
        elif name != "top":
            _lamps(canvas, t, inset, name)
    low = (back * t.size - 0.25, front * t.size + 0.5, 0.84)
    high = (back * t.size, front * t.size - 0.25, 0.68)
    for name, inset, points in shell(low, 0.86, high, roof):
        canvas.fill(points, canvas.colour(paint, _facing(name), t.z), code_of(t))
        if name != "top":
            glass = canvas.colour((50, 66, 86), 0.3, t.z)
            panes = ((0.07, 0.48), (0.53, 0.93)) if name in ("left", "right") else ((0.08, 0.92),)
            for u0, u1 in panes:
                canvas.fill(inset(u0, 0.1, u1, 0.86), glass)
                if canvas.pixels(1.0, t.z) > 12:
                    streak = inset(u0, 0.1, u1, 0.86)
                    third = [between(streak[3], streak[2], 0.25), between(streak[3], streak[2], 0.55)]
                    foot = [between(streak[0], streak[1], 0.35), between(streak[0], streak[1], 0.05)]
                    canvas.veil(third + foot, canvas.light.sky[1], 90)


def _facing(name: str) -> float:
    return {"top": 1.0, "left": 0.55, "right": 0.55}.get(name, 0.12)


def _frustum(canvas: Canvas, t: Thing, place: Place, low: Corner, y0: float, high: Corner, y1: float) -> list[Face]:
    """The visible faces of a box with sloping sides.

    `low` and `high` are (rear end, front end, half width) at heights `y0` and `y1`.
    """
    (l0, l1, w), (m0, m1, v) = low, high
    faces: dict[str, tuple[Corner, Corner, Corner, Corner]] = {
        "left": ((l0, y0, -w), (l1, y0, -w), (m1, y1, -v), (m0, y1, -v)),
        "right": ((l1, y0, w), (l0, y0, w), (m0, y1, v), (m1, y1, v)),
        "top": ((m0, y1, v), (m0, y1, -v), (m1, y1, -v), (m1, y1, v)),
        "back": ((l0, y0, w), (l0, y0, -w), (m0, y1, -v), (m0, y1, v)),
        "front": ((l1, y0, -w), (l1, y0, w), (m1, y1, v), (m1, y1, -v)),
    }

    def part(corners: tuple[Corner, Corner, Corner, Corner], u0: float, v0: float, u1: float, v1: float) -> list[Point]:
        a, b, c, d = corners
        points = []
        for u, s in ((u0, v0), (u1, v0), (u1, v1), (u0, v1)):
            low, high = [a[i] + (b[i] - a[i]) * u for i in range(3)], [d[i] + (c[i] - d[i]) * u for i in range(3)]
            along, y, right = (low[i] + (high[i] - low[i]) * s for i in range(3))
            points.append(place(along, y, right))
        return points

    visible: list[Face] = []
    for name, corners in faces.items():
        points = [place(*corner) for corner in corners]
        area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(points, points[1:] + points[:1], strict=True))
        if area > 0:
            visible.append((name, partial(part, corners), points))
    return visible


def _flank(canvas: Canvas, t: Thing, place: Place, inset: Inset, right: float) -> None:
    """Sill, door lines and wheels."""
    canvas.fill(inset(0.0, 0.0, 1.0, 0.16), canvas.colour((46, 48, 54), 0.3, t.z))
    if canvas.pixels(1.0, t.z) > 16:
        for u in (0.3, 0.5, 0.7):
            canvas.veil(inset(u - 0.003, 0.16, u + 0.003, 1.0), (0, 0, 0), 120)
        for u in (0.36, 0.56):
            canvas.veil(inset(u, 0.74, u + 0.05, 0.8), (0, 0, 0), 130)
    for along in (-0.31 * t.size, 0.31 * t.size):
        for r, tone in ((0.36, (22, 22, 27)), (0.21, (168, 170, 178)), (0.07, (60, 62, 70))):
            rim = [place(along + r * c, 0.35 + r * s, right) for c, s in CIRCLE]
            canvas.fill(rim, canvas.colour(tone, 0.4, t.z), code_of(t))


def _lamps(canvas: Canvas, t: Thing, inset: Inset, end: str) -> None:
    """Bumper, number plate and lamps of the "front" or "back"; lamps are on after sunset."""
    on = canvas.time != "day"
    lamp: Colour = (236, 40, 36) if end == "back" else (255, 248, 220)
    tint = (110.0, 16.0, 12.0) if end == "back" else (120.0, 112.0, 84.0)
    canvas.fill(inset(0.0, 0.0, 1.0, 0.22), canvas.colour((46, 48, 54), 0.3, t.z))
    if end == "front":
        canvas.fill(inset(0.26, 0.5, 0.74, 0.82), canvas.colour((40, 42, 48), 0.3, t.z))
    canvas.fill(inset(0.36, 0.26, 0.64, 0.46), canvas.colour((240, 236, 216), 0.6, t.z))
    for u in (0.03, 0.77):
        box = inset(u, 0.5, u + 0.2, 0.84)
        canvas.fill(box, lamp if on else canvas.colour(mix(lamp, (0, 0, 0), 0.12), 0.6, t.z))
        if on:
            x, y = (box[0][0] + box[2][0]) / 2, (box[0][1] + box[2][1]) / 2
            canvas.glow(x, y, 0.26 * canvas.focal / t.z, tint, code_of(t))
