"""Colour profiles: pictures come in many colour spaces, shards hold sRGB.

A profile counts as sRGB when it moves no colour of a coarse grid by more than TOLERANCE of 255 levels: what it is
called says little. Others are applied with relative colorimetric intent and black point compensation, as photo editors
do.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

TOLERANCE = 2
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""Mode → the colour space that a profile must be of."""

IGNORED = "colour profile ignored: broken"
MISFIT = "colour profile ignored: of another colour space"


class BrokenProfile(Exception):
    """A profile that cannot be used; the message is what the row's `changes` say."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture (RGB, L or CMYK) in sRGB (RGB, L for L); None where the profile is sRGB already.

    Raises BrokenProfile.
    """
    transform = _transform(profile, image.mode)
    if transform is None:
        return None
    made = ImageCms.applyTransform(image, transform)
    assert made is not None
    # From grey come equal channels, but for rounding.
    return made.getchannel(1) if image.mode == "L" else made


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    """The transform, or None where it changes next to nothing."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):
        raise BrokenProfile(IGNORED) from None
    if space != SPACES[mode]:
        raise BrokenProfile(MISFIT)
    try:
        made = ImageCms.buildTransform(opened, _srgb(), mode, "RGB", INTENT, ImageCms.Flags.BLACKPOINTCOMPENSATION)
        if mode == "CMYK":
            return made
        grid = _grid(mode)
        moved = np.asarray(ImageCms.applyTransform(grid, made)).astype(int) - np.asarray(grid.convert("RGB"))
    except (ImageCms.PyCMSError, ValueError):
        raise BrokenProfile(IGNORED) from None
    return made if np.abs(moved).max() > TOLERANCE else None


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _grid(mode: str) -> Image.Image:
    """Every grey, or 9 levels of each channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3))
