"""Hashes of a picture: of its bytes, of its pixels, and two of what it looks like.

Everything up to the hashes' bits is integer arithmetic, so that they are the same on every machine.

The picture is shrunk to 32×32 cells, each the mean of its area, and made grey (ITU-R 601 luma).

`phash`: signs of the 64 lowest frequencies of its cosine transform. The idea and the 32×32 grey picture are those of
Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1. Two things differ:
which coefficients (his are the square of frequencies 1 to 8; ours also hold the purely horizontal and vertical ones,
which say where horizon and kerbs are) and what they are compared with (his is their median; ours is 0, about which they
are symmetric in photographs, so that no bit depends on another).

`gradients`: whether each cell of the same, shrunk on to 9×8, is darker than its right neighbour (Krawetz 2013, "Kind of
Like That"). It errs on other pairs than `phash` does; both together are what makes two pictures near duplicates.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
BITS = 64
_SCALE = 14
"""The cosine matrix is rounded to multiples of 2 to the minus this."""


def _cosines() -> np.ndarray:
    """The orthonormal DCT-II of length SIDE, times 2**_SCALE, rounded: int64 [SIDE, SIDE], row k is frequency k."""
    k, n = np.mgrid[0:SIDE, 0:SIDE]
    matrix = math.sqrt(2 / SIDE) * np.cos(math.pi * (2 * n + 1) * k / (2 * SIDE))
    matrix[0] /= math.sqrt(2)
    return np.rint(matrix * 2**_SCALE).astype(np.int64)


_DCT = _cosines()
_LOWEST = sorted(((u, v) for u in range(SIDE) for v in range(SIDE) if u + v), key=lambda f: (f[0] + f[1], f[0]))[:BITS]
_ROWS, _COLUMNS = (np.array(part) for part in zip(*_LOWEST, strict=True))
"""Vertical and horizontal frequency of bit i: by their sum, then by the vertical one; the mean is left out."""


def describe(data: bytes, image: Image.Image) -> dict[str, Any]:
    """The scalars of the column `hash` for a picture: its stored bytes and the same, decoded.

    `phash` and `gradients` are 64 bits, bit 0 the most significant, as the signed integers with those bits.
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    colours = _shrunk(rgb, SIDE, SIDE)
    grey = colours.convert("L")
    cells = _numbers(grey)
    waves = (_DCT @ cells @ _DCT.T)[_ROWS, _COLUMNS]
    steps = _numbers(_shrunk(grey, 9, 8))
    red, green, blue = (float(value) for value in np.asarray(colours).mean(axis=(0, 1)))
    return {
        "bytes_sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": pixels_sha256(rgb),
        "phash": _signed(waves > 0),
        "gradients": _signed(steps[:, :-1] < steps[:, 1:]),
        "detail": round(float(np.median(np.abs(waves))) / 4**_SCALE, 3),
        "deviation": round(_deviation(cells), 3),
        "red": round(red, 3),
        "green": round(green, 3),
        "blue": round(blue, 3),
        "width": rgb.width,
        "height": rgb.height,
    }


def pixels_sha256(rgb: Image.Image) -> str:
    """sha256 of `WIDTH HEIGHT`, a line end, and the pixels as RGB bytes, row by row: equal for the same picture in
    another file format, or stored as grey instead of as equal colours."""
    digest = hashlib.sha256(f"{rgb.width} {rgb.height}\n".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def _shrunk(image: Image.Image, width: int, height: int) -> Image.Image:
    """Each cell is the mean of its area, pixels at its border by their share; Pillow does this in fixed point."""
    return image.resize((width, height), Image.Resampling.BOX)


def _numbers(grey: Image.Image) -> np.ndarray:
    return np.asarray(grey).astype(np.int64)


def _deviation(cells: np.ndarray) -> float:
    """Standard deviation from whole sums: no order of additions can change it."""
    total, squares = int(cells.sum()), int((cells**2).sum())
    return math.sqrt(cells.size * squares - total**2) / cells.size


def _signed(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big", signed=True)
