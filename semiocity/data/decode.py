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


def decode_rgb(data: bytes, at_least: tuple[int, int] | None = None, out: Pixels | None = None) -> Pixels:
    """A picture as uint8 [H, W, 3], the caller's own; in `out` (contiguous) if that has its shape.

    `at_least` (width, height): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, the smallest that is not below;
    H and W are then rounded up. Raises DecodeError.
    """
    return _decode(data, _jpeg_header(data), at_least, out)


def decode_cropped(data: bytes, size: tuple[int, int], out: Pixels | None = None) -> Pixels:
    """A picture brought to `size` (width, height): the largest box of that shape, out of the middle, Lanczos.

    uint8 [height, width, 3], in `out` (contiguous) if that has this shape. A JPEG much larger than that is decoded
    reduced, see `GAP`. Raises DecodeError.
    """
    header = _jpeg_header(data)
    full = header[0] if header else _open(data, load=False).size
    geometry = crop_of(full, size)
    if geometry is None:
        return _decode(data, header, None, out)
    left, top, right, bottom = geometry.box
    # All of the picture at the scale at which its box is GAP times as large as wanted.
    wanted = (-(-GAP * size[0] * full[0] // (right - left)), -(-GAP * size[1] * full[1] // (bottom - top)))
    pixels = _decode(data, header, wanted, None)
    shrunk = next(n for n in REDUCTIONS if pixels.shape[1::-1] == (-(-full[0] // n), -(-full[1] // n)))
    box = (left / shrunk, top / shrunk, right / shrunk, bottom / shrunk)
    return _into(out, Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box))


def crop_of(full: tuple[int, int], size: tuple[int, int]) -> Geometry | None:
    """How a picture of `full` (width, height) is cut and scaled to `size`; None when it already fits. Maps of ids
    follow it too (`semiocity.data.geometry`)."""
    return plan_geometry(ImagePolicy(resize="crop", size=size), *full)


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header says. Raises DecodeError."""
    header = _jpeg_header(data)
    return header[0] if header else _open(data, load=False).size


def decode_ids(data: bytes) -> NDArray[Any]:
    """A label or instance map as it is stored: [H, W], uint8 or uint16. Raises DecodeError."""
    ids = np.array(_open(data))
    if ids.ndim != 2 or ids.dtype not in (np.uint8, np.uint16):
        raise DecodeError(f"not one channel of ids (shape {list(ids.shape)}, {ids.dtype})")
    return ids


def _into(out: Pixels | None, image: Image.Image) -> Pixels:
    if out is None or out.shape != (image.height, image.width, 3):
        return np.array(image)
    out[...] = np.asarray(image)
    return out


def _jpeg_header(data: bytes) -> tuple[tuple[int, int], bool] | None:
    """(width, height) of a JPEG, and whether simplejpeg gives it the pixels that Pillow does: all but those in four
    colours. None when it is none, or no header that libjpeg-turbo reads."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height), colours not in ("CMYK", "YCCK")


def _decode(
    data: bytes, header: tuple[tuple[int, int], bool] | None, at_least: tuple[int, int] | None, out: Pixels | None
) -> Pixels:
    if header and header[1]:
        width, height = at_least or (0, 0)
        try:
            if out is not None and out.shape == (*header[0][::-1], 3):
                simplejpeg.decode_jpeg(data, buffer=out)
                return out
            return simplejpeg.decode_jpeg(data, min_width=width, min_height=height, min_factor=2 if at_least else 1)
        except ValueError:
            pass  # Pillow forgives more (and so does `pack`), or says what is wrong
    return _into(out, _open(data).convert("RGB"))


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
