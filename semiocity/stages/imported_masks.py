"""Masks made elsewhere, in our own form: run-lengths, polygons, and PNGs of ids or colours."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from semiocity.data.keys import printable, to_bytes
from semiocity.errors import UserError
from semiocity.stages.base import BadRow
from semiocity.stages.masks import Masks, of_rles

LARGEST = 178_000_000
"""Pixels of a PNG; more is refused by its header."""


def gather(values: list[dict[str, Any]], size: tuple[int, int], roots: list[Path]) -> Masks:
    """All masks of a picture of `size` (height, width) from its inputs (`data/sidecars.py`).

    Raises BadRow for masks that are damaged or of another size, UserError when a PNG is gone or has changed.
    """
    rles: list[dict[str, Any]] = []
    facts: list[dict[str, Any]] = []
    for value in values:
        if "png" in value:
            found = _png(_pinned_bytes(value, roots), size, value["origin"])
        else:
            _check_size(tuple(value["size"]), size, value["origin"])
            found = [(_rle(item["shape"], size, value["origin"]), _facts(item)) for item in value["masks"]]
        for rle, known in found:
            rles.append(rle)
            facts.append(known)
    return of_rles(size, rles, facts)


def _facts(item: dict[str, Any]) -> dict[str, Any]:
    return {name: known for name, known in item.items() if name != "shape"}


def _check_size(found: tuple[int, ...], size: tuple[int, int], origin: str) -> None:
    if found != size:
        raise BadRow(f"{origin}: masks are {found[1]}x{found[0]}, the picture is {size[1]}x{size[0]}")


def _rle(shape: Any, size: tuple[int, int], origin: str) -> dict[str, Any]:
    """pycocotools' compressed run-lengths of text, a list of runs, or a list of polygons."""
    height, width = size
    try:
        if isinstance(shape, str):
            rle = {"size": [height, width], "counts": shape.encode("ascii")}
        elif shape and isinstance(shape[0], list):
            # Polygons of fewer than three points cover nothing, and pycocotools takes four numbers for a box.
            polygons = [[float(x) for x in polygon] for polygon in shape if len(polygon) >= 6]
            if not polygons:
                return coco.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
            return coco.merge(coco.frPyObjects(polygons, height, width))
        else:
            if sum(shape) != height * width or min(shape) < 0:
                raise BadRow(f"{origin}: run-lengths of {sum(shape)} pixels, the picture has {height * width}")
            rle = coco.frPyObjects({"size": [height, width], "counts": shape}, height, width)
        _check_runs(rle, height * width, origin)
    except (TypeError, ValueError, UnicodeEncodeError, IndexError) as error:
        raise BadRow(f"{origin}: a mask cannot be read: {error}") from None
    return rle


def _check_runs(rle: dict[str, Any], pixels: int, origin: str) -> None:
    """Add up compressed run-lengths (as cocoapi's rleFrString reads them): what is damaged never reaches its C code."""
    total = previous = before = 0
    value = shift = index = 0
    for byte in rle["counts"]:
        chunk = byte - 48
        if not 0 <= chunk < 64:
            raise BadRow(f"{origin}: run-lengths with a character that cannot be there")
        value |= (chunk & 31) << shift
        shift += 5
        if chunk & 32:
            continue
        if chunk & 16:
            value -= 1 << shift
        if index > 2:
            value += before
        if value < 0:
            raise BadRow(f"{origin}: a run-length below zero")
        total += value
        before, previous = previous, value
        value = shift = 0
        index += 1
    if shift or total != pixels:
        raise BadRow(f"{origin}: run-lengths of {total} pixels, the picture has {pixels}")


def _pinned_bytes(value: dict[str, Any], roots: list[Path]) -> bytes:
    path = Path(str(roots[value["root"]])) / to_bytes(value["png"]).decode("utf-8", "surrogateescape")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path.parent}: {printable(value['png'])} is gone since it was imported") from None
    if hashlib.sha256(data).hexdigest() != value["sha256"]:
        raise UserError(f"{path.parent}: {printable(value['png'])} has changed since it was imported; import it again")
    return data


def _png(data: bytes, size: tuple[int, int], origin: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A mask for each id but 0 (grey or palette, up to 16 bits), or for each colour but black."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        _check_size((image.height, image.width), size, origin)
        pixels = np.asarray(image if image.mode in ("1", "L", "P", "I;16", "I") else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadRow(f"{origin}: cannot be decoded") from None
    colored = pixels.ndim == 3
    if colored:
        pixels = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    found = []
    for number in np.unique(pixels):
        if number:
            known = {"color": [int(number) >> 16, int(number) >> 8 & 255, int(number) & 255]}
            rle = coco.encode(np.asfortranarray(pixels == number, dtype=np.uint8))
            found.append((rle, known if colored else {"id": int(number)}))
    return found
