"""Pictures in and out: decoding, resizing, colouring, PNG bytes. No torch here."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiocity.data import decode
from semiocity.data.decode import decode_rgb
from semiocity.data.geometry import plan_geometry, resize_ids, resize_image
from semiocity.data.recipe import ImagePolicy

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

RESIZE = "cut to the shape in the middle, then Lanczos; labels: most frequent id of a cell, or nearest"
"""What is done to pictures of another size, as protocols say it."""


def decode_image(data: bytes, size: Size | None = None) -> Pixels:
    """A picture as uint8 [H, W, 3], brought to `size` as `RESIZE` says. ValueError when it is damaged."""
    pixels = decode_rgb(data)
    return resized(pixels, size) if size else pixels


def resized(pixels: Pixels, size: Size) -> Pixels:
    """A picture [H, W, 3] brought to `size` as `RESIZE` says."""
    geometry = plan_geometry(_policy(size), pixels.shape[1], pixels.shape[0])
    return np.array(resize_image(Image.fromarray(pixels), geometry)) if geometry else pixels


def decode_ids(data: bytes, classes: int, ignore_id: int | None = None) -> NDArray[Any]:
    """A map of ids [H, W] as the PNG holds it. ValueError when an id is `classes` or more, but for `ignore_id`."""
    ids = decode.decode_ids(data)
    wrong = [value for value in np.unique(ids).tolist() if value >= classes and value != ignore_id]
    if wrong:
        raise ValueError(
            f"its label map holds id {wrong[0]}; classes are 0 to {classes - 1}, the ignored id {ignore_id}"
        )
    return ids


def decode_label(data: bytes, classes: int, ignore_id: int | None, size: Size | None = None) -> Pixels:
    """A label map as uint8 [H, W], brought to `size` as `RESIZE` says. ValueError when an id is out of range."""
    ids = decode_ids(data, classes, ignore_id).astype(np.uint8)
    geometry = size and plan_geometry(_policy(size), ids.shape[1], ids.shape[0])
    return resize_ids(ids, geometry, pad=0) if geometry else ids


def encode_png(pixels: Pixels) -> bytes:
    """[H, W, 3] or [H, W], uint8, as PNG: the same bytes for the same pixels and Pillow version."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def pixels_digest(pixels: Pixels) -> str:
    """sha256 over shape and values: tells a different picture from the same one compressed differently."""
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def colored(labels: Pixels, palette: Sequence[Sequence[int]], ignored: Sequence[int] = (0, 0, 0)) -> Pixels:
    """Label ids [H, W] in the colours of their classes [H, W, 3]; ids beyond the palette in `ignored`."""
    table = np.full((256, 3), ignored, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def _policy(size: Size) -> ImagePolicy:
    return ImagePolicy(resize="crop", size=(size[1], size[0]))
