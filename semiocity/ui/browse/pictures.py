"""Thumbnails, and maps of ids in a form that browsers read exactly. Needs no torch."""

from __future__ import annotations

import colorsys
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from semiocity.errors import UserError

SIZES = (160, 240, 360, 540)
"""Longest sides of thumbnails, in pixels."""
KEPT_MB = 128
"""Of thumbnails in memory."""
TINT = 0.55
"""Share of the map's colour where it lies over the picture."""
GOLDEN = 0.61803398875


class Thumbnails:
    """The last thumbnails made. Safe to use from several threads."""

    def __init__(self, kept_mb: int = KEPT_MB) -> None:
        self._kept: OrderedDict[Hashable, tuple[str, bytes]] = OrderedDict()
        self._free = kept_mb * 1_000_000
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[str, bytes]]) -> tuple[str, bytes]:
        """(media type, bytes), made unless it is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._free -= len(made[1])
            while self._free < 0:
                self._free += len(self._kept.popitem(last=False)[1][1])
        return made


def thumbnail(data: bytes, size: int) -> tuple[str, bytes]:
    """A picture (JPEG or PNG) with its longer side at most `size`, as (media type, bytes). Never enlarged."""
    picture = _small(data, size)
    return _jpeg(picture) if max(picture.size) > 128 else _png(picture)


def map_thumbnail(data: bytes, colours: Callable[[np.ndarray], np.ndarray], size: int) -> tuple[str, bytes]:
    """A map of ids in colours, each pixel that of one id; `colours` turns ids [H, W] into uint8 [H, W, 4]."""
    painted = colours(_shrunk_ids(data, size))
    return _png(Image.fromarray(np.ascontiguousarray(painted[..., :3])))


def blended(image: bytes, regions: bytes, colours: Callable[[np.ndarray], np.ndarray], size: int) -> tuple[str, bytes]:
    """A map of ids over its picture; where `colours` gives alpha 0, the picture alone."""
    return laid_over(image, colours(_shrunk_ids(regions, size)), size)


def laid_over(image: bytes, painted: np.ndarray, size: int) -> tuple[str, bytes]:
    """Colours uint8 [h, w, 4] over a picture, at the picture's size or `size`."""
    picture = _small(image, size).convert("RGB")
    tint = Image.fromarray(np.ascontiguousarray(painted)).resize(picture.size, Image.Resampling.NEAREST)
    alpha = tint.getchannel("A").point(lambda value: round(value * TINT))
    picture.paste(tint.convert("RGB"), mask=alpha)
    return _jpeg(picture)


def decode_ids(data: bytes, size: int | None = None) -> np.ndarray:
    """A map of ids as the PNG holds it: [H, W]. Raises UserError when it is none."""
    return np.asarray(_shrink(_opened(data), size)) if size else np.asarray(_opened(data))


def ids_as_rgb(data: bytes) -> bytes:
    """A PNG of ids up to 65535 as RGB: red is the high byte, green the low one. Browsers cut 16 bits to 8."""
    ids = decode_ids(data)
    if ids.ndim != 2:
        raise UserError(f"a map of ids has one channel; this has shape {ids.shape}")
    rgb = np.zeros((*ids.shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = ids.astype(np.uint16) >> 8, ids.astype(np.uint16) & 255
    return _png(Image.fromarray(rgb), compress_level=1)[1]


def class_colours(palette: Sequence[Sequence[int]]) -> Callable[[np.ndarray], np.ndarray]:
    """Colours of class ids; an id without a class is transparent."""
    table = np.zeros((65536, 4), np.uint8)
    for i, colour in enumerate(palette):
        table[i] = (*colour, 255)
    return lambda ids: table[ids]


def number_colours(ids: np.ndarray) -> np.ndarray:
    """A colour a number, neighbours in number far apart in hue; 0 is transparent. The page's paint.js does the same."""
    hues = (np.arange(1, 257) * GOLDEN) % 1
    cycle = np.array([colorsys.hls_to_rgb(hue, 0.55, 0.75) for hue in hues]) * 255
    table = np.concatenate([cycle, np.full((256, 1), 255.0)], axis=1).round().astype(np.uint8)
    painted = table[(ids.astype(np.int64) - 1) % 256]
    painted[ids == 0] = 0
    return painted


def regions_of(masks: dict[str, Any], most: int) -> np.ndarray:
    """The masks of a `mask.json` payload as numbers, uint16 [h, w], small masks above large ones; 0 outside all.

    At most `most` pixels on the longer side: run-lengths are decoded one by one, and shrunk at once.
    Raises UserError when the payload is malformed.
    """
    from pycocotools import mask as coco

    try:
        height, width = (int(side) for side in masks["size"])
        if not 0 < height * width <= Image.MAX_IMAGE_PIXELS * 2:  # type: ignore[operator]
            raise ValueError(f"size {height}x{width}")
        step = max(1, max(height, width) // most)
        regions = np.zeros((height, width), np.uint16)[::step, ::step].copy()
        for number, item in enumerate(masks["masks"], start=1):
            counts = str(item["counts"]).encode("ascii")
            if _pixels(counts) != height * width:
                raise ValueError(f"mask {number} does not fill its picture")
            regions[coco.decode([{"size": [height, width], "counts": counts}])[::step, ::step, 0] > 0] = number
    except (KeyError, TypeError, ValueError, UnicodeEncodeError) as error:
        raise UserError(f"masks: {type(error).__name__}: {error}") from None
    return regions


def _pixels(counts: bytes) -> int:
    """Pixels that COCO's compressed run-lengths cover. Checked here: some versions of pycocotools
    trust them and write past their buffer."""
    runs: list[int] = []
    at = 0
    while at < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(counts):
                raise ValueError("run-lengths end inside a number")
            byte = counts[at] - 48
            if not 0 <= byte < 64:
                raise ValueError(f"{counts[at : at + 1]!r} in run-lengths")
            value |= (byte & 31) << shift
            more = bool(byte & 32)
            shift += 5
            at += 1
            if not more and byte & 16:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("negative run-length")
        runs.append(value)
    return sum(runs)


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"no picture: {error}") from None


def _small(data: bytes, size: int) -> Image.Image:
    """A picture as RGB or grey, decoded at a fraction of its size where its format can do that."""
    image = _opened(data)
    try:
        image.draft("RGB", (size, size))
        image.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
        image.load()  # one that is small enough was not decoded yet
        return image if image.mode in ("RGB", "L") else image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"picture cannot be decoded: {error}") from None


def _shrunk_ids(data: bytes, size: int) -> np.ndarray:
    return np.asarray(_shrink(_opened(data), size))


def _shrink(image: Image.Image, size: int) -> Image.Image:
    """Ids are picked, never mixed."""
    try:
        if max(image.size) <= size:
            image.load()
            return image
        share = size / max(image.size)
        wanted = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        return image.resize(wanted, Image.Resampling.NEAREST)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"map cannot be decoded: {error}") from None


def _jpeg(picture: Image.Image) -> tuple[str, bytes]:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=85)
    return "image/jpeg", sink.getvalue()


def _png(picture: Image.Image, compress_level: int = 4) -> tuple[str, bytes]:
    sink = io.BytesIO()
    picture.save(sink, "PNG", compress_level=compress_level)
    return "image/png", sink.getvalue()
