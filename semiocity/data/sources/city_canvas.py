"""The drawing surface of generated streets: camera, light, and an image and its maps drawn by the same calls.

Both are drawn finer than the result, so they agree: the image is averaged down, the maps are sampled at the middle of
each pixel. Whatever has no code is detail of the image alone, left out where it would be smaller than a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from semiocity.data.sources.city_layout import Camera, Dice, Kind

Colour = tuple[int, int, int]
Tint = tuple[float, float, float]
Point = tuple[float, float]

# A table instead of sine and cosine, whose last bits differ between C libraries.
CIRCLE: tuple[Point, ...] = (
    (1.0, 0.0), (0.9239, 0.3827), (0.7071, 0.7071), (0.3827, 0.9239),
    (0.0, 1.0), (-0.3827, 0.9239), (-0.7071, 0.7071), (-0.9239, 0.3827),
    (-1.0, 0.0), (-0.9239, -0.3827), (-0.7071, -0.7071), (-0.3827, -0.9239),
    (0.0, -1.0), (0.3827, -0.9239), (0.7071, -0.7071), (0.9239, -0.3827),
)  # fmt: skip

GRAIN = {Kind.ROAD: 7, Kind.CROSSING: 7, Kind.PAVEMENT: 6, Kind.GRASS: 16, Kind.TREE: 10, Kind.BUILDING: 4}
HAZE_M = 110.0  # at this distance half of a colour is haze


@dataclass(frozen=True)
class Light:
    """What the hour does to colours."""

    sky: tuple[Colour, Colour, Colour]  # zenith, middle, horizon
    cloud: Colour
    ambient: Tint
    sun: Tint
    haze: Colour
    shadow: int  # depth of cast shadows, 0 to 255
    lit: float  # share of windows with a lamp on


LIGHTS: dict[str, Light] = {
    "day": Light(
        sky=((58, 128, 218), (122, 180, 238), (210, 230, 244)),
        cloud=(255, 255, 255),
        ambient=(0.66, 0.7, 0.78),
        sun=(0.42, 0.37, 0.26),
        haze=(206, 224, 240),
        shadow=95,
        lit=0.0,
    ),
    "dusk": Light(
        sky=((74, 70, 140), (218, 124, 128), (255, 204, 124)),
        cloud=(255, 172, 156),
        ambient=(0.52, 0.47, 0.58),
        sun=(0.52, 0.32, 0.12),
        haze=(244, 182, 136),
        shadow=75,
        lit=0.45,
    ),
    "night": Light(
        sky=((10, 14, 44), (22, 32, 78), (58, 62, 112)),
        cloud=(40, 48, 92),
        ambient=(0.43, 0.46, 0.62),
        sun=(0.06, 0.06, 0.08),
        haze=(60, 66, 114),
        shadow=70,
        lit=0.6,
    ),
}


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of `b` in it."""
    rest = 1.0 - share
    return int(a[0] * rest + b[0] * share), int(a[1] * rest + b[1] * share), int(a[2] * rest + b[2] * share)


def between(a: Point, b: Point, part: float) -> Point:
    """The point that is `part` of the way from `a` to `b`."""
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part


def roll(word: int, *steps: int) -> int:
    """32 bits from `word` and `steps`: what belongs to an object does not hang on what was drawn or left out before."""
    for step in steps:
        word = ((word ^ (step + 0x9E3779B9)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 29
    return (word * 0x94D049BB133111EB >> 24) & 0xFFFFFFFF


def share(word: int) -> float:
    """The low bits of a roll as a number in [0, 1)."""
    return word % 4096 / 4096


class Canvas:
    """One picture in the making, seen by `camera` at the hour that `dice` picks."""

    def __init__(self, camera: Camera, dice: Dice, width: int, height: int) -> None:
        self.camera, self.width, self.height = camera, width, height
        self.fine = 3 if min(width, height) <= 256 else 2
        self.w, self.h = width * self.fine, height * self.fine
        self.unit = min(self.w, self.h)
        self.focal = camera.focal * self.unit
        # Pillow's whole numbers are the middles of pixels.
        self.cx, self.cy = camera.vanish * self.w - 0.5, camera.horizon * self.h - 0.5
        self.time = dice.pick(("day", "day", "dusk", "night"))
        self.light = LIGHTS[self.time]
        self.sun_side = dice.pick((-1, 1))
        self.salt = dice.word()
        self.image = Image.new("RGB", (self.w, self.h), self.light.sky[2])
        self._maps = Image.new("I", (self.w, self.h), int(Kind.SKY))
        self._draw = ImageDraw.Draw(self.image)
        self._veil = ImageDraw.Draw(self.image, "RGBA")
        self._mark = ImageDraw.Draw(self._maps)
        self._glows: list[tuple[float, float, float, Tint, int]] = []

    def at(self, x: float, y: float, z: float) -> Point:
        """Where the point (x, y, z), in metres, is seen."""
        scale = self.focal / z
        return self.cx + (x - self.camera.x) * scale, self.cy - (y - self.camera.height) * scale

    def pixels(self, metres: float, z: float) -> float:
        """Size in pixels of the result of something `metres` long at depth `z`."""
        return metres * self.focal / z / self.fine

    def sees(self, points: Sequence[Point]) -> bool:
        """False where a polygon lies left or right of the picture, or above or below it."""
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        return max(xs) >= 0 and min(xs) < self.w and max(ys) >= 0 and min(ys) < self.h

    def colour(self, base: Colour, facing: float, z: float) -> Colour:
        """`base` in the light of the hour, behind `z` metres of air; `facing` is 1 in full sun, 0 in shade."""
        ambient, sun, haze = self.light.ambient, self.light.sun, self.light.haze
        far = z / (z + HAZE_M)
        near = 1.0 - far
        return (
            int(min(255.0, base[0] * (ambient[0] + sun[0] * facing)) * near + haze[0] * far),
            int(min(255.0, base[1] * (ambient[1] + sun[1] * facing)) * near + haze[1] * far),
            int(min(255.0, base[2] * (ambient[2] + sun[2] * facing)) * near + haze[2] * far),
        )

    def fill(self, points: Sequence[Point], colour: Colour, code: int | None = None) -> None:
        """A polygon in the image and, with a code, in the maps."""
        self._draw.polygon(points, fill=colour)
        if code is not None:
            self._mark.polygon(points, fill=code)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, code: int | None = None) -> None:
        box = (x - rx, y - ry, x + rx, y + ry)
        self._draw.ellipse(box, fill=colour)
        if code is not None:
            self._mark.ellipse(box, fill=code)

    def line(self, start: Point, end: Point, colour: Colour) -> None:
        self._draw.line((start, end), fill=colour, width=1)

    def veil(self, points: Sequence[Point], colour: Colour, alpha: int) -> None:
        """A see-through polygon, in the image alone."""
        self._veil.polygon(points, fill=(*colour, alpha))

    def soft(
        self, shapes: Sequence[Sequence[Point]], colour: Colour, alpha: int, blur: float, top: float = 0.0
    ) -> None:
        """Polygons with blurred edges (`blur` as a share of the picture), in the image below row `top` alone."""
        part = self.fine * (1 if self.unit <= 128 * self.fine else 2)
        mask = Image.new("L", (max(1, self.w // part), max(1, self.h // part)))
        pen = ImageDraw.Draw(mask)
        for points in shapes:
            pen.polygon([(x / part, y / part) for x, y in points], fill=alpha)
        mask = mask.filter(ImageFilter.GaussianBlur(blur * self.unit / part)).resize(self.image.size)
        if top >= 1.0:
            mask.paste(0, (0, 0, self.w, int(top)))
        self.image.paste(colour, (0, 0), mask)

    def glow(self, x: float, y: float, radius: float, tint: Tint, code: int) -> None:
        """Light around a lamp that belongs to `code`; it shows only where nothing has covered the lamp in the end."""
        self._glows.append((x, y, radius, tint, code))

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image uint8 [H,W,3], class ids uint8 [H,W], instance ids uint16 [H,W]."""
        fine_codes = np.asarray(self._maps)
        middle = self.fine // 2
        codes = fine_codes[middle :: self.fine, middle :: self.fine]
        label, instance = (codes & 15).astype(np.uint8), (codes >> 4).astype(np.uint16)
        image = np.asarray(self.image.reduce(self.fine)).astype(np.float32)
        if min(self.width, self.height) >= 192:
            image += self._grain(label)[..., None]
        for x, y, radius, tint, code in self._glows:
            if 0 <= x < self.w and 0 <= y < self.h and fine_codes[int(y), int(x)] == code:
                self._add_glow(image, x / self.fine, y / self.fine, max(0.8, radius / self.fine), tint)
        return np.clip(image, 0.0, 255.0).astype(np.uint8), label, instance

    def _grain(self, label: np.ndarray) -> np.ndarray:
        """Asphalt, stone and leaves are not flat: noise [H,W] whose strength depends on the class."""
        words = np.random.Philox(key=np.array([self.salt, 0], dtype=np.uint64)).random_raw((label.size + 7) // 8)
        noise = words.view(np.uint8)[: label.size].reshape(label.shape).astype(np.float32) / 127.5 - 1.0
        strength = np.array([GRAIN.get(kind, 0) for kind in Kind], dtype=np.float32)
        if self.time == "night":
            strength *= 0.5
        return noise * strength[label]

    def _add_glow(self, image: np.ndarray, x: float, y: float, radius: float, tint: Tint) -> None:
        left, right = max(0, int(x - 5 * radius)), min(self.width, int(x + 5 * radius) + 1)
        top, bottom = max(0, int(y - 5 * radius)), min(self.height, int(y + 5 * radius) + 1)
        dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)) / np.float32(radius)
        dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)) / np.float32(radius)
        square = dx[None, :] * dx[None, :] + dy[:, None] * dy[:, None]
        falloff = np.maximum(1.0 / (1.0 + square) - 1.0 / 26.0, 0.0)
        image[top:bottom, left:right] += falloff[..., None] * np.array(tint, dtype=np.float32)
