"""Boxes of objects, brought along when their picture is turned, cut and scaled.

A row's boxes are a list of {"label", "bbox": [x, y, width, height], "attributes"} in pixels of the packed picture, x to
the right and y down from its upper left corner, as in COCO; fractions of pixels are kept to two digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from semiocity.config import canonical
from semiocity.data.geometry import Geometry

Box = tuple[float, float, float, float]
"""x, y, width, height."""


def place_boxes(
    boxes: Iterable[dict[str, Any]],
    size: tuple[int, int],
    geometry: Geometry | None,
    *,
    relative: bool = False,
    rotation: int = 0,
    min_visible: float = 0.0,
) -> list[dict[str, Any]]:
    """The boxes in pixels of the packed picture.

    `size` is the picture's width and height as it came; then it was turned by `rotation` degrees counterclockwise, and
    then `geometry` was applied. Boxes are clipped to what is left of the picture; those with no area, or with less than
    `min_visible` of it left, are dropped.
    """
    width, height = size
    scale = (width, height, width, height) if relative else (1, 1, 1, 1)
    turned = (height, width) if rotation in (90, 270) else size
    window = geometry.box if geometry else (0, 0, *turned)
    placed = []
    for item in boxes:
        x, y, w, h = (value * factor for value, factor in zip(item["bbox"], scale, strict=True))
        whole = turn((x, y, w, h), size, rotation)
        left = clip(whole, window)
        if left[2] <= 0 or left[3] <= 0 or left[2] * left[3] < min_visible * whole[2] * whole[3]:
            continue
        bbox = [round(value, 2) for value in (resize(left, geometry) if geometry else left)]
        placed.append({"label": item["label"], "bbox": bbox, "attributes": item.get("attributes", {})})
    return placed


def turn(box: Box, size: tuple[int, int], degrees: int) -> Box:
    """A box of a picture of this width and height, after the picture was turned counterclockwise."""
    x, y, w, h = box
    width, height = size
    match degrees:
        case 90:
            return y, width - x - w, h, w
        case 180:
            return width - x - w, height - y - h, w, h
        case 270:
            return height - y - h, x, h, w
        case _:
            return box


def clip(box: Box, window: tuple[int, int, int, int]) -> Box:
    """The part of a box inside left, top, right, bottom; its width or height is 0 or less when nothing is."""
    x, y = max(box[0], window[0]), max(box[1], window[1])
    return x, y, min(box[0] + box[2], window[2]) - x, min(box[1] + box[3], window[3]) - y


def resize(box: Box, geometry: Geometry) -> Box:
    """Apply to a box in pixels of the source."""
    left, top, right, bottom = geometry.box
    across = geometry.scaled[0] / (right - left)
    down = geometry.scaled[1] / (bottom - top)
    x, y, w, h = box
    return (x - left) * across + geometry.offset[0], (y - top) * down + geometry.offset[1], w * across, h * down


def encode_boxes(boxes: list[dict[str, Any]]) -> bytes:
    """As a row's member `KEY.boxes.json`."""
    return canonical(boxes).encode()
