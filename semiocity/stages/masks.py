"""The masks of a picture as JSON: `{"size": [h, w], "masks": [{"counts", "bbox", "area", …}, …]}`.

`counts` are COCO's compressed run-lengths, column by column, zeros first: with `size` they are what pycocotools reads.
`bbox` is [x, y, width, height] in whole pixels, `area` in pixels. SAM adds `score` (the predicted IoU), `stability` and
`point` ([x, y] of the prompt). Masks may overlap; they come from large to small.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from semiocity.files import canonical
from semiocity.stages.base import Made


class Masks(NamedTuple):
    """All masks of one picture."""

    size: tuple[int, int]
    """Height and width."""
    items: list[dict[str, Any]]

    def arrays(self) -> np.ndarray:
        """bool [masks, H, W]."""
        if not self.items:
            return np.zeros((0, *self.size), dtype=bool)
        return np.ascontiguousarray(coco.decode(_rles(self)).transpose(2, 0, 1)).astype(bool)

    def coverage(self) -> float:
        """Share of the picture that lies in at least one mask, 0 to 1."""
        if not self.items:
            return 0.0
        return float(coco.area(coco.merge(_rles(self)))) / (self.size[0] * self.size[1])


def encode(masks: np.ndarray, facts: list[dict[str, Any]] | None = None) -> Masks:
    """Encode bool [masks, H, W]; `facts` are further entries of each mask. Empty masks are left out.

    The order of the result does not depend on that of the input.
    """
    rles = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)) if len(masks) else []
    return of_rles((int(masks.shape[1]), int(masks.shape[2])), rles, facts or [{}] * len(rles))


def of_rles(size: tuple[int, int], rles: list[dict[str, Any]], facts: list[dict[str, Any]]) -> Masks:
    """From pycocotools' compressed run-lengths, as `encode`."""
    items = []
    for rle, more in zip(rles, facts, strict=True):
        area = int(coco.area(rle))
        if area:
            box = [int(value) for value in coco.toBbox(rle)]
            items.append({"counts": rle["counts"].decode("ascii"), "bbox": box, "area": area, **more})
    items.sort(key=lambda item: (-item["area"], item["bbox"], item["counts"], canonical(item)))
    return Masks(size, items)


def region_masks(regions: np.ndarray) -> Masks:
    """One mask a region of a map of region numbers, [H, W]."""
    return encode(np.stack([regions == number for number in np.unique(regions)]))


def made(masks: Masks) -> Made:
    """A row of the column."""
    data = canonical({"size": list(masks.size), "masks": masks.items}).encode()
    scalars = {"masks": len(masks.items), "coverage": round(masks.coverage(), 6)}
    return Made({"rle": ("mask.json", data)}, scalars)


def load(data: bytes) -> Masks:
    """Read the payload of `mask.rle`."""
    found = json.loads(data)
    height, width = found["size"]
    return Masks((height, width), found["masks"])


def _rles(masks: Masks) -> list[dict[str, Any]]:
    return [{"size": list(masks.size), "counts": item["counts"].encode("ascii")} for item in masks.items]
