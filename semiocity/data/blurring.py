"""Blurring while packing: what is found in a picture loses its detail for good."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from semiocity.data import blur, csv_files
from semiocity.data.images import Picture, Rejected
from semiocity.data.keys import printable
from semiocity.data.sources.base import Entry
from semiocity.errors import UserError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright picture."""

Find = Callable[[Entry, Image.Image], Sequence[Sequence[float]]]


@dataclass
class Blurrer:
    """A detector, ready, and what is done with the boxes it finds."""

    find: Find
    policy: blur.Blur

    def __call__(self, entry: Entry, picture: Picture) -> tuple[Picture, int]:
        """The picture without what was found in it, and how many boxes that were. Raises Rejected."""
        pixels, count = blur_boxes(
            picture.pixels, self.find(entry, picture.pixels), self.policy.margin, self.policy.cells
        )
        if not count:
            return picture, 0
        return Picture(pixels, picture.ext, None, [*picture.changes, f"blurred {count}"]), count


def make_blurrer(policy: blur.Blur | None, planned: str | None) -> Blurrer | None:
    """The recipe's detector, loaded; None where the recipe blurs nothing.

    Raises UserError when it is not what it was when the plan was made.
    """
    if policy is None:
        return None
    detector = policy.detector
    if detector.digest() != planned:
        raise UserError(
            f"blur.detector: {detector.path} has changed since the plan was made. Run `semiocity pack` again: it plans "
            "anew"
        )
    match detector:
        case blur.Boxes():
            return Blurrer(_listed(detector), policy)
        case blur.Transformers():
            from semiocity.data.detectors import load_detector

            return Blurrer(load_detector(detector), policy)
        case blur.Import():
            return Blurrer(_imported(detector), policy)


def blur_boxes(
    image: Image.Image, boxes: Iterable[Sequence[float]], margin: float, cells: int
) -> tuple[Image.Image, int]:
    """The picture (RGB or L) with every box grown by `margin` and blurred, and how many lie in the picture.

    A box becomes at most `cells` by `cells` averages, smoothed afterwards so that no borders of cells show. Only those
    averages are left of it, and they are taken from inside the box alone.
    """
    made = image.copy()
    count = 0
    for box in boxes:
        area = _grown(box, margin, image.size)
        if area is None:
            continue
        left, top, right, bottom = area
        wide, high = right - left, bottom - top
        cell = max(wide, high) / cells
        few = (max(1, round(wide / cell)), max(1, round(high / cell)))
        part = made.crop(area).resize(few, Image.Resampling.BOX).resize((wide, high), Image.Resampling.NEAREST)
        made.paste(part.filter(ImageFilter.GaussianBlur(cell / 2)), area)
        count += 1
    return made, count


def _grown(box: Sequence[float], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Whole pixels inside the picture; None where nothing is left."""
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise UserError(f"blur.detector: {box!r:.200} is no box: left, top, right, bottom in pixels are expected")
    left, top, right, bottom = box
    wide, high = (right - left) * margin, (bottom - top) * margin
    area = (
        max(0, math.floor(left - wide)),
        max(0, math.floor(top - high)),
        min(size[0], math.ceil(right + wide)),
        min(size[1], math.ceil(bottom + high)),
    )
    return area if area[0] < area[2] and area[1] < area[3] and left < right and top < bottom else None


def _listed(detector: blur.Boxes) -> Find:
    known = _read_json(detector) if detector.path.suffix == ".json" else _read_csv(detector)

    def find(entry: Entry, image: Image.Image) -> Sequence[Box]:
        for name in (entry.id, entry.files.get("image")):
            if name is not None and name in known:
                return known[name]
        if detector.unlisted == "reject":
            raise Rejected("blur_unlisted", printable(entry.name))
        return ()

    return find


def _read_json(detector: blur.Boxes) -> dict[str, list[Box]]:
    try:
        found = json.loads(detector.path.read_text(encoding="utf-8"))
        return {name: [_box(values) for values in boxes] for name, boxes in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'{detector.path}: {error}; {{"street/a.jpg": [[left, top, right, bottom], …], …}} is expected'
        ) from None


def _read_csv(detector: blur.Boxes) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = {}
    expected = "lines of file (or id),left,top,right,bottom are expected, after a first line with these names"
    with detector.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv_files.dict_reader(file, strict=True)
        names = set(reader.fieldnames or ())
        name = "file" if "file" in names else "id"
        if not {name, *SIDES} <= names:
            raise UserError(f"{detector.path}: {expected}")
        try:
            for row in reader:
                boxes = found.setdefault(row[name], [])
                values = [row[side] for side in SIDES]
                if any(values):
                    boxes.append(_box(values))
        except (csv_files.Error, ValueError, TypeError) as error:
            raise UserError(f"{detector.path}: line {reader.line_num}: {error}; {expected}") from None
    return found


SIDES = ("left", "top", "right", "bottom")


def _box(values: Any) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    if not (left < right and top < bottom):
        raise ValueError(f"{values!r:.100} is no box")
    return left, top, right, bottom


def _imported(detector: blur.Import) -> Find:
    module, _, name = detector.function.partition(":")
    if detector.path is not None and str(detector.path) not in sys.path:
        sys.path.insert(0, str(detector.path))
    try:
        made = getattr(import_module(module), name)(**detector.args)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"blur.detector.function: {detector.function}: {error}") from None

    def find(entry: Entry, image: Image.Image) -> Sequence[Box]:
        boxes: Sequence[Box] = made(np.asarray(image.convert("RGB")))
        return boxes

    return find
