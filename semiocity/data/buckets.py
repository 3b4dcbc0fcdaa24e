"""Aspect buckets: the sizes that rows of different shapes are trained at. Login-node code but for `nearest`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from semiocity.config import Strict

if TYPE_CHECKING:
    import numpy as np

MOST = 256
"""Buckets of a view: a row's bucket is kept in one byte."""

Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""Width and height in pixels."""


class Buckets(Strict):
    """Sizes as a list, or made from an area: then every width and height is a multiple of `step`."""

    sizes: tuple[Size, ...] | None = None
    """[[width, height], …] in pixels."""
    area: int | None = Field(None, ge=1)
    """Pixels that a bucket has at most, such as 1048576 for 1024²."""
    step: int = Field(64, ge=1)
    """Pixels; the model's stride, or a multiple of it."""
    max_aspect: float = Field(2.0, ge=1)
    """Longest side over shortest side."""
    width: str = "base.width"
    height: str = "base.height"
    """Scalars that say how large a row's picture is."""

    @model_validator(mode="after")
    def _one_way(self) -> Buckets:
        if (self.sizes is None) == (self.area is None):
            raise ValueError("give either sizes = [[width, height], …] or area (with step and max_aspect)")
        if self.sizes is not None and len(set(self.sizes)) != len(self.sizes):
            raise ValueError("two buckets have the same size")
        count = len(self.all_sizes())
        if not 1 <= count <= MOST:
            raise ValueError(f"{count} buckets; there must be 1 to {MOST}. Choose another area, step or max_aspect")
        return self

    def all_sizes(self) -> list[Size]:
        """Width and height of each bucket; a row's bucket is a place in this list."""
        if self.sizes is not None:
            return list(self.sizes)
        assert self.area is not None
        return sizes_of(self.area, self.step, self.max_aspect)


def sizes_of(area: int, step: int, max_aspect: float) -> list[Size]:
    """For every width the tallest height within the area, and the same turned round; from tall to wide.

    Widths and heights are multiples of `step`. Of sizes with the same aspect the largest stays. The idea is
    NovelAI's (2022, "NovelAI Improvements on Stable Diffusion").
    """
    found: dict[float, Size] = {}
    for first in range(step, math.isqrt(area) // step * step + 1, step):
        second = area // first // step * step
        if second < step or max(first, second) > max_aspect * min(first, second):
            continue
        for width, height in ((first, second), (second, first)):
            there = found.get(width / height)
            if there is None or there[0] < width:
                found[width / height] = (width, height)
    return [found[aspect] for aspect in sorted(found)]


def nearest(width: np.ndarray, height: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """uint8 [rows]: the bucket whose aspect is nearest to width / height by logarithm; of equals the first."""
    import numpy as np

    wanted = np.log(np.array([w / h for w, h in sizes]))
    aspect = np.log(width.astype(np.float64) / height)
    return np.abs(aspect[:, None] - wanted[None, :]).argmin(axis=1).astype(np.uint8)
