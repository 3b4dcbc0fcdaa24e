"""Segmenters. Column `mask`: field `rle` (all masks of a picture, COCO run-lengths), scalars `masks` and `coverage`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from semiocity.stages import weights
from semiocity.stages.base import DatasetInfo, Made, Row, Stage, StageArgs, Tombstone

if TYPE_CHECKING:
    from semiocity.stages.sam import MaskGenerator


class Segment(Stage):
    """What the segmenters share: from pictures to one JSON of masks a row, described in `masks.py`."""

    name = "segment"
    column = "mask"

    def needs(self) -> tuple[str, ...]:
        return ("base.image",)

    def fields(self) -> dict[str, str]:
        return {"rle": "mask.json"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"masks": "int", "coverage": "float"}


class SuperpixelSegmentArgs(StageArgs):
    """`segmenter = "superpixels"`."""

    segmenter: Literal["superpixels"]
    device: Literal["cpu"] = "cpu"
    dtype: Literal["float32"] = "float32"
    batch: int = Field(16, ge=1)
    superpixels: int = Field(400, ge=2)
    """SLIC cells that a picture is cut into at first; fewer in small pictures."""
    compactness: float = Field(10.0, gt=0)
    """SLIC's weight of nearness against likeness of colour."""
    masks_max: int = Field(40, ge=1)
    """Regions are joined until there are no more than this."""
    join: float = Field(0.015, ge=0)
    """And further while the cheapest join costs no more than this; larger joins more (`superpixels.join_regions`)."""


class SuperpixelSegment(Segment):
    """Regions of like colour: SLIC cells, joined along their adjacency graph. No weights."""

    version = 1
    Args = SuperpixelSegmentArgs

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.stages.images import decode_rgb, decode_rows, payload
        from semiocity.stages.masks import made, region_masks
        from semiocity.stages.superpixels import regions

        args = self.args

        def segment(row: Row) -> Made:
            pixels = decode_rgb(payload(row, "base.image"))
            return made(region_masks(regions(pixels, args.superpixels, args.compactness, args.masks_max, args.join)))

        good, results = decode_rows(rows, segment)
        results |= dict(good)
        return [results[place] for place in range(len(rows))]


class SamSegmentArgs(StageArgs):
    """`segmenter = "sam"`. Thresholds are those of Kirillov et al. 2023 (arXiv:2304.02643), appendix B."""

    segmenter: Literal["sam"]
    model: Annotated[Path, weights.ModelFolder]
    """Folder of a SAM, as `save_pretrained` or a hub download leaves it."""
    batch: int = Field(4, ge=1)
    """Pictures, or crops of them, that are encoded and decoded together."""
    points_per_side: int = Field(32, ge=1)
    """The grid of point prompts on each picture."""
    points_per_batch: int = Field(64, ge=1)
    """Points of each picture in one call of the decoder."""
    iou: float = Field(0.88, ge=0, le=1)
    """Least quality that the model predicts for a mask."""
    stability: float = Field(0.95, ge=0, le=1)
    """Least overlap of the masks that are cut from the logits at +offset and -offset."""
    stability_offset: float = Field(1.0, ge=0)
    overlap: float = Field(0.7, ge=0, le=1)
    """Boxes that overlap more than this are one object; the better mask stays."""
    min_area: int = Field(0, ge=0)
    """Pixels; smaller masks are dropped."""
    crop_layers: int = Field(0, ge=0, le=3)
    """Layer n cuts the picture into 4**n overlapping crops that are segmented as well."""
    crop_overlap: float = Field(512 / 1500, ge=0, lt=1)
    """Overlap of the first layer's crops, as a share of the picture's shorter side."""
    crop_points_downscale: int = Field(1, ge=1)
    """The grid of layer n has points_per_side / this**n points a side."""


class SamSegment(Segment):
    """Masks of everything by SAM (Kirillov et al. 2023, arXiv:2304.02643) with our own batched generator."""

    version = 1
    Args = SamSegmentArgs

    generator: MaskGenerator

    def paths(self) -> list[str]:
        return [str(self.args.model)]

    def check(self) -> None:
        weights.check(self.args.model, "args.model", model_type="sam")

    def model_revision(self) -> str | None:
        return weights.revision(self.args.model)

    def load(self, info: DatasetInfo, device: str) -> None:
        from semiocity.stages.sam import MaskGenerator, Options

        names = Options._fields
        options = Options(**{name: getattr(self.args, name) for name in names})
        self.generator = MaskGenerator(weights.resolve(self.args.model), device, self.args.dtype, options)

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.stages.images import decode_rgb, decode_rows, payload
        from semiocity.stages.masks import made

        good, results = decode_rows(rows, lambda row: decode_rgb(payload(row, "base.image")))
        if good:
            found = self.generator.masks([pixels for _, pixels in good], self.args.batch)
            results |= {place: made(masks) for (place, _), masks in zip(good, found, strict=True)}
        return [results[place] for place in range(len(rows))]
