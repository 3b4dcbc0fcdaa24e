"""Resizing a picture and its maps together.

All of them are cut and scaled by one exact rule in whole pixels of the source, so that they stay aligned. Pictures are
filtered with Lanczos. Maps of ids cannot be averaged: enlarging takes the nearest id, and shrinking by two or more (on
either side) takes the most frequent id of each cell, since picking one pixel of many makes thin things flicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from semiocity.data.recipe import ImagePolicy

BAND_COUNTS = 1 << 22
"""Counters held at a time while voting; larger maps are done in bands of rows."""


@dataclass(frozen=True)
class Geometry:
    """Cut `box` out of the source, scale it to `scaled`, and lay it at `offset` on a canvas of size `size`."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom in source pixels."""
    scaled: tuple[int, int]
    """Width, height."""
    size: tuple[int, int]
    """Width, height."""
    offset: tuple[int, int] = (0, 0)
    """Left, top."""


def plan_geometry(policy: ImagePolicy, width: int, height: int) -> Geometry | None:
    """What the policy does to a picture of this size; None when nothing."""
    if policy.size is None:
        return None
    wide, high = policy.size
    whole = (0, 0, width, height)
    match policy.resize:
        case "crop":
            # The largest box of the wanted aspect, in the middle.
            cut_wide = min(width, max(1, round(height * wide / high)))
            cut_high = min(height, max(1, round(width * high / wide)))
            left, top = (width - cut_wide) // 2, (height - cut_high) // 2
            made = Geometry((left, top, left + cut_wide, top + cut_high), policy.size, policy.size)
        case "fit":
            scaled = _inside(width, height, wide, high) if width > wide or height > high else (width, height)
            made = Geometry(whole, scaled, scaled)
        case "letterbox":
            scaled = _inside(width, height, wide, high)
            made = Geometry(whole, scaled, policy.size, ((wide - scaled[0]) // 2, (high - scaled[1]) // 2))
        case _:
            return None
    return None if made == Geometry(whole, (width, height), (width, height)) else made


def _inside(width: int, height: int, wide: int, high: int) -> tuple[int, int]:
    """The largest size of the same aspect within (wide, high)."""
    if width * high >= height * wide:
        return wide, max(1, round(height * wide / width))
    return max(1, round(width * high / height)), high


def turn_image(image: Image.Image, degrees: int) -> Image.Image:
    """Turn counterclockwise by 0, 90, 180 or 270 degrees, losing nothing."""
    return image.transpose(_TURNS[degrees]) if degrees else image


def turn_ids(ids: np.ndarray, degrees: int) -> np.ndarray:
    """Turn a map of ids [H, W] as `turn_image` does."""
    return np.rot90(ids, degrees // 90)


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def resize_image(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Apply to a picture (RGB or L): Lanczos, padding black."""
    scaled = image.resize(geometry.scaled, Image.Resampling.LANCZOS, box=geometry.box)
    if geometry.scaled == geometry.size:
        return scaled
    canvas = Image.new(image.mode, geometry.size)
    canvas.paste(scaled, geometry.offset)
    return canvas


def resize_ids(ids: np.ndarray, geometry: Geometry, pad: int) -> np.ndarray:
    """Apply to a map of ids [H, W]: nearest, or the vote of each cell when shrinking by two or more; padding `pad`."""
    left, top, right, bottom = geometry.box
    return _place(scale_ids(ids[top:bottom, left:right], geometry.scaled), geometry, pad)


def resize_instances(instances: np.ndarray, labels: np.ndarray | None, geometry: Geometry) -> np.ndarray:
    """Apply to an instance map [H, W]. Where labels are voted, only instances under the winning label have a vote."""
    left, top, right, bottom = geometry.box
    cut = instances[top:bottom, left:right]
    if labels is None:
        return _place(scale_ids(cut, geometry.scaled), geometry, 0)
    # Label first, then instance: the most frequent pair that has the winning label.
    under = labels[top:bottom, left:right].astype(np.uint32)
    winner = scale_ids(under, geometry.scaled)
    pairs = under << 16 | cut
    return _place((scale_ids(pairs, geometry.scaled, within=winner) & 0xFFFF).astype(instances.dtype), geometry, 0)


def _place(scaled: np.ndarray, geometry: Geometry, pad: int) -> np.ndarray:
    if geometry.scaled == geometry.size:
        return scaled
    canvas = np.full(geometry.size[::-1], pad, dtype=scaled.dtype)
    x, y = geometry.offset
    canvas[y : y + scaled.shape[0], x : x + scaled.shape[1]] = scaled
    return canvas


def scale_ids(ids: np.ndarray, size: tuple[int, int], within: np.ndarray | None = None) -> np.ndarray:
    """Scale a map [H, W] to size (width, height).

    Shrinking by two or more: cell i of n covers source pixels i·N//n up to (i+1)·N//n, and its most frequent id wins,
    the lowest of equals. `within` [height, width] admits only ids whose upper 16 bits are the cell's value there.
    Otherwise the id at the cell's centre.
    """
    high, wide = ids.shape
    width, height = size
    if wide < 2 * width and high < 2 * height:
        rows = (np.arange(height) * 2 + 1) * high // (2 * height)
        columns = (np.arange(width) * 2 + 1) * wide // (2 * width)
        return ids[rows[:, None], columns]
    if wide < width or high < height:
        # Shrunk on one side only: bring the other to its size first, so that no cell is empty.
        wider, higher = max(wide, width), max(high, height)
        ids = ids[(np.arange(higher) * high // higher)[:, None], np.arange(wider) * wide // wider]
        high, wide = higher, wider
    values, codes = np.unique(ids, return_inverse=True)
    codes = codes.reshape(ids.shape)
    column_of = np.repeat(np.arange(width), np.diff(np.arange(width + 1) * wide // width))
    starts = np.arange(height + 1) * high // height
    band = max(1, BAND_COUNTS // (width * len(values)))
    result = np.empty((height, width), dtype=ids.dtype)
    for first in range(0, height, band):
        last = min(first + band, height)
        row_of = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1]))
        cell = row_of[:, None] * width + column_of
        votes = np.bincount(
            (cell * len(values) + codes[starts[first] : starts[last]]).ravel(),
            minlength=(last - first) * width * len(values),
        ).reshape(last - first, width, len(values))
        if within is not None:
            votes[(values >> 16) != within[first:last, :, None]] = -1
        result[first:last] = values[votes.argmax(axis=2)]
    return result


def mark_edges(ids: Any, edge: Any) -> None:
    """Set `edge` where an id differs from one of its four neighbours: both sides of every border.

    Both are arrays or both are tensors, [..., H, W]; `edge` is bool and all False. This is the edge map of Wang et al.
    2018 (pix2pixHD, arXiv 1711.11585, section 3.3).
    """
    across = ids[..., 1:] != ids[..., :-1]
    down = ids[..., 1:, :] != ids[..., :-1, :]
    edge[..., 1:] |= across
    edge[..., :-1] |= across
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down


def edge_map(ids: np.ndarray) -> np.ndarray:
    """The edges of a map of ids [H, W]: uint8 [H, W], 255 on an edge and 0 elsewhere."""
    edge = np.zeros(ids.shape, dtype=bool)
    mark_edges(ids, edge)
    return edge.astype(np.uint8) * 255
