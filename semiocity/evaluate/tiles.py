"""Pictures for a page: label maps in their colours, masks over photographs, data URIs. No torch here."""

from __future__ import annotations

import base64
import colorsys
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiocity.data.geometry import plan_geometry, resize_ids
from semiocity.data.recipe import ImagePolicy
from semiocity.evaluate.images import Pixels, Size, encode_png
from semiocity.stages import masks

LARGEST = 288
"""Longest side, in pixels, of a picture inside a page."""
GOLDEN = 0.61803398875


def data_uri(pixels: Pixels) -> str:
    """A picture [H, W, 3] as a URI that holds it: PNG when small, else shrunk to LARGEST and JPEG."""
    height, width = pixels.shape[:2]
    if max(height, width) <= LARGEST // 2:
        return _uri(encode_png(pixels), "png")
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=90, subsampling=0)
    return _uri(sink.getvalue(), "jpeg")


def flat_uri(pixels: Pixels) -> str:
    """A picture of few colours [H, W, 3] as a URI: PNG with a palette, shrunk to LARGEST without mixing colours."""
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST:
        share = LARGEST / max(image.size)
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.NEAREST)
    sink = io.BytesIO()
    colours = image.getcolors(maxcolors=256)
    (image.quantize(len(colours), dither=Image.Dither.NONE) if colours else image).save(sink, "PNG", optimize=True)
    return _uri(sink.getvalue(), "png")


def overlaid(pixels: Pixels, rle: bytes, size: Size) -> Pixels:
    """A picture [H, W, 3] of `size` with the masks of a `mask.rle` payload laid over it, small ones above large ones.

    The picture is enlarged so that the outlines stay thin.
    """
    found = masks.load(rle)
    regions = np.zeros(found.size, dtype=np.uint16)
    for number, mask in enumerate(found.arrays(), start=1):
        regions[mask] = number
    geometry = plan_geometry(ImagePolicy(resize="crop", size=(size[1], size[0])), found.size[1], found.size[0])
    regions = resize_ids(regions, geometry, 0) if geometry else regions
    times = max(1, LARGEST // max(size))
    regions = regions.repeat(times, axis=0).repeat(times, axis=1)
    photo = Image.fromarray(pixels).resize((size[1] * times, size[0] * times), Image.Resampling.BICUBIC)
    base = np.asarray(photo, dtype=np.float32)
    tint = _colours(len(found.items))[regions]
    share = np.where(regions > 0, 0.5, 0.0)[..., None]
    mixed = base * (1 - share) + tint * share
    mixed[_outlines(regions)] = 255
    return np.rint(mixed).astype(np.uint8)


def _colours(count: int) -> NDArray[np.float32]:
    """A colour for every region number; neighbours in number are far apart in hue. [count + 1, 3]"""
    hues = [(i * GOLDEN) % 1 for i in range(count + 1)]
    return np.array([colorsys.hls_to_rgb(hue, 0.55, 0.75) for hue in hues], dtype=np.float32) * 255


def _outlines(regions: NDArray[np.uint16]) -> NDArray[np.bool_]:
    edge = np.zeros(regions.shape, dtype=bool)
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edge[1:] |= regions[1:] != regions[:-1]
    return edge


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
