"""Payloads into pixels: simplejpeg (libjpeg-turbo) for JPEG, Pillow for everything else.

Exact: slow DCT, smooth upsampling, so that the pixels are those that Pillow gives. Payloads are what `pack` wrote:
upright, 8 bits, checked for size.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from semiocity.data.geometry import Geometry, plan_geometry
from semiocity.data.recipe import ImagePolicy

Pixels = NDArray[np.uint8]

GAP = 2
"""A picture that is going to be resized is decoded at no less than so many times the wanted size (also Pillow's
`reducing_gap`). Against a full decode that costs 50 dB of PSNR, as much as Lanczos differs from bicubic; at 1 it would
be 42 dB."""
REDUCTIONS = (1, 2, 4, 8)
"""By which a JPEG's size is divided while it is decoded."""


class DecodeError(ValueError):
    """A payload is damaged or no picture. The message is the same every time and says nothing of where it lay."""


def decode_rgb(data: bytes, at_least: tuple[int, int] | None = None) -> Pixels:
    """A picture as uint8 [H, W, 3], the caller's own.

    `at_least` (width, height): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, the smallest that is not below;
    H and W are then rounded up. Raises DecodeError.
    """
    if _is_plain_jpeg(data):
        width, height = at_least or (0, 0)
        try:
            return simplejpeg.decode_jpeg(data, min_width=width, min_height=height, min_factor=2 if at_least else 1)
        except ValueError:
            pass  # Pillow forgives more (and so does `pack`), or says what is wrong
    return np.array(_open(data).convert("RGB"))


def decode_cropped(data: bytes, size: tuple[int, int]) -> Pixels:
    """A picture brought to `size` (width, height): the largest box of that shape, out of the middle, Lanczos.

    uint8 [height, width, 3]. A JPEG much larger than that is decoded reduced, see `GAP`. Raises DecodeError.
    """
    full = picture_size(data)
    geometry = crop_of(full, size)
    if geometry is None:
        return decode_rgb(data)
    left, top, right, bottom = geometry.box
    # All of the picture at the scale at which its box is GAP times as large as wanted.
    wanted = (-(-GAP * size[0] * full[0] // (right - left)), -(-GAP * size[1] * full[1] // (bottom - top)))
    pixels = decode_rgb(data, wanted)
    shrunk = next(n for n in REDUCTIONS if pixels.shape[1::-1] == (-(-full[0] // n), -(-full[1] // n)))
    box = (left / shrunk, top / shrunk, right / shrunk, bottom / shrunk)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box))


def crop_of(full: tuple[int, int], size: tuple[int, int]) -> Geometry | None:
    """How a picture of `full` (width, height) is cut and scaled to `size`; None when it already fits. Maps of ids
    follow it too (`semiocity.data.geometry`)."""
    return plan_geometry(ImagePolicy(resize="crop", size=size), *full)


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header says. Raises DecodeError."""
    if data[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return width, height
        except ValueError:
            pass
    return _open(data, load=False).size


def decode_ids(data: bytes) -> NDArray[Any]:
    """A label or instance map as it is stored: [H, W], uint8 or uint16. Raises DecodeError."""
    ids = np.array(_open(data))
    if ids.ndim != 2 or ids.dtype not in (np.uint8, np.uint16):
        raise DecodeError(f"not one channel of ids (shape {list(ids.shape)}, {ids.dtype})")
    return ids


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether simplejpeg gives this picture the pixels that Pillow gives it: all JPEGs but those in four colours."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK")
    except ValueError:
        return False


def _open(data: bytes, load: bool = True) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        if load:
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parsers ran into
        # Pillow names the stream by its address.
        raise DecodeError(re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))) from None
    return image
