"""Aspect buckets, as a job or a view names them: the sizes that pictures of different shapes are brought to.

Login-node code; `semiocity.data.aspects` puts rows into buckets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from semiocity.config import Strict

Side = Annotated[int, Field(ge=8, le=16384)]


class BucketOptions(Strict):
    """Either `sizes`, or `area` with `step` and `max_aspect`.

    Podell et al. 2023 (SDXL, arXiv 2307.01952), section 2.3 and appendix I, train on such a list.
    """

    sizes: tuple[tuple[Side, Side], ...] = ()
    """Width and height of each bucket in pixels."""
    area: int | None = Field(None, ge=64)
    """Most pixels of a bucket, such as 1048576 for 1024²."""
    step: int = Field(64, ge=8)
    """Widths and heights are multiples of this many pixels."""
    max_aspect: float = Field(2.0, ge=1)
    """The longer side is at most so many times the shorter one."""

    @model_validator(mode="after")
    def _one_way_or_the_other(self) -> Self:
        if (self.area is None) == (not self.sizes):
            raise ValueError("give either sizes = [[width, height], …] or area = PIXELS")
        if self.sizes and self.model_fields_set & {"step", "max_aspect"}:
            raise ValueError("step and max_aspect go with area, not with sizes")
        sizes = self.resolved()
        if not sizes:
            raise ValueError(f"area {self.area} has no room for a bucket of {self.step}×{self.step}")
        for one, other in pairwise(sizes):
            if one[0] * other[1] == other[0] * one[1]:
                raise ValueError(f"sizes {list(one)} and {list(other)} have the same shape; rows fit only one of them")
        return self

    def resolved(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each bucket, from the tallest shape to the widest."""
        return tuple(sorted(self.sizes or self._within(), key=lambda size: size[0] / size[1]))

    def _within(self) -> list[tuple[int, int]]:
        """For every side, the longest other side that the area allows; the mirror image of each is there as well."""
        assert self.area is not None
        found: dict[tuple[int, int], None] = {}
        for short in range(self.step, int(self.area**0.5) + 1, self.step):
            long = self.area // short // self.step * self.step
            if short <= long <= short * self.max_aspect:
                found |= {(short, long): None, (long, short): None}
        # Of one shape only the largest: (512, 256) has nothing to offer beside (1024, 512).
        shapes = {width * 10**6 // height: (width, height) for width, height in sorted(found)}
        return list(shapes.values())
