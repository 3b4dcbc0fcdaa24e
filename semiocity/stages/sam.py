"""Masks of everything in a picture by SAM: pictures and point prompts in batches, filtered before they are enlarged.

Kirillov et al. 2023, "Segment Anything" (arXiv:2304.02643), automatic mask generation of appendix B. Two things differ
from the authors' code, for speed: stability, boxes and duplicates are judged on the decoder's small masks, so that
only the survivors are enlarged; and several pictures (or crops) share every call of encoder and decoder. A picture's
masks do not depend on its company in the batch beyond what the execution class allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.ops import nms
from transformers import SamModel, SamProcessor

from semiocity.stages.masks import Masks, encode

EDGE_PIXELS = 20.0
"""A box nearer than this to a crop's edge, where that is not the picture's edge, is an object cut in two."""
ENLARGE = 32
"""Masks enlarged at a time: 32 x 1024 x 1024 x 4 bytes are 128 MiB."""


class Options(NamedTuple):
    """What `SamSegmentArgs` documents."""

    points_per_side: int = 32
    points_per_batch: int = 64
    iou: float = 0.88
    stability: float = 0.95
    stability_offset: float = 1.0
    overlap: float = 0.7
    min_area: int = 0
    crop_layers: int = 0
    crop_overlap: float = 512 / 1500
    crop_points_downscale: int = 1


class Box(NamedTuple):
    """A rectangle in pixels of the picture; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass
class View:
    """A picture, or a crop of one, as the model sees it."""

    picture: int
    box: Box
    grid: torch.Tensor
    """Point prompts, [points, 2], x and y as shares of the view."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the view as it is fed to the model, without padding."""


@dataclass
class Candidates:
    """Masks of one view that have passed the filters; the first dimension of everything is the mask."""

    view: View
    logits: torch.Tensor
    """float32 [masks, h, w]: the decoder's, without padding."""
    score: torch.Tensor
    stability: torch.Tensor
    boxes: torch.Tensor
    """float32 [masks, 4]: left, top, right, bottom in pixels of the picture."""
    points: torch.Tensor
    """float32 [masks, 2]: the prompts in pixels of the picture."""

    def take(self, which: torch.Tensor) -> Candidates:
        fields = (self.logits, self.score, self.stability, self.boxes, self.points)
        return Candidates(self.view, *(field[which] for field in fields))


class MaskGenerator:
    """A SAM loaded from a local folder."""

    def __init__(self, folder: Path, device: str, dtype: str, options: Options) -> None:
        self.images = SamProcessor.from_pretrained(folder, local_files_only=True).image_processor
        self.dtype = getattr(torch, dtype)
        self.model = SamModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=self.dtype)
        self.model.to(device).eval()
        self.device = device
        self.options = options

    @torch.inference_mode()
    def masks(self, pictures: Sequence[np.ndarray], batch: int) -> list[Masks]:
        """The masks of each picture, uint8 [H, W, 3] of any size; `batch` views are encoded and decoded together."""
        views = [view for index, pixels in enumerate(pictures) for view in self._views(index, pixels.shape[:2])]
        found: dict[int, list[Candidates]] = {index: [] for index in range(len(pictures))}
        for start in range(0, len(views), batch):
            for candidates in self._segment(pictures, views[start : start + batch]):
                found[candidates.view.picture].append(candidates)
        return [self._finish(found[index], pixels.shape[:2]) for index, pixels in enumerate(pictures)]

    # ---------------------------------------------------------------- from views to candidates

    def _views(self, picture: int, shape: tuple[int, int]) -> list[View]:
        options = self.options
        views = []
        for layer, box in crop_boxes(shape, options.crop_layers, options.crop_overlap):
            side = max(1, options.points_per_side // options.crop_points_downscale**layer)
            views.append(View(picture, box, point_grid(side)))
        return views

    def _segment(self, pictures: Sequence[np.ndarray], views: list[View]) -> Iterator[Candidates]:
        """Encode the views together and decode their points together, `points_per_batch` of each view at a time."""
        crops = [pictures[v.picture][v.box.top : v.box.bottom, v.box.left : v.box.right] for v in views]
        inputs = self.images(images=crops, input_data_format="channels_last", return_tensors="pt")
        for view, size in zip(views, inputs["reshaped_input_sizes"].tolist(), strict=True):
            view.size = (size[0], size[1])
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device, self.dtype))
        parts: list[list[Candidates]] = [[] for _ in views]
        step = self.options.points_per_batch
        for start in range(0, max(len(view.grid) for view in views), step):
            # Crops may have fewer points; a call takes the views that have some left, as many of each.
            alive = [i for i, view in enumerate(views) if len(view.grid) > start]
            count = min(min(len(views[i].grid) for i in alive) - start, step)
            for group, first, last in _equal_spans(views, alive, start, start + step, count):
                grids = torch.stack([views[i].grid[first:last] for i in group])
                sizes = torch.tensor([views[i].size[::-1] for i in group], dtype=torch.float32)
                points = (grids * sizes[:, None]).to(self.device, self.dtype)
                decoded = self.model(
                    image_embeddings=embeddings[group], input_points=points[:, :, None], multimask_output=True
                )
                for place, i in enumerate(group):
                    logits, score = decoded.pred_masks[place], decoded.iou_scores[place]
                    parts[i].append(self._filter(views[i], grids[place], logits, score))
        for view_parts in parts:
            candidates = _concatenate(view_parts)
            yield candidates.take(nms(candidates.boxes, candidates.score, self.options.overlap))

    def _filter(self, view: View, grid: torch.Tensor, logits: torch.Tensor, score: torch.Tensor) -> Candidates:
        """Candidates among logits [points, 3, h, w] with predicted IoU [points, 3]."""
        options = self.options
        per_point = logits.shape[1]
        # Of the padded square that the model works on, the part with the view in it.
        side = self.images.pad_size["height"]
        rows, columns = (max(1, ceil(size * logits.shape[-1] / side)) for size in view.size)
        logits, score = logits.flatten(0, 1), score.flatten().float()
        keep = torch.nonzero(_above(score, options.iou)).squeeze(1)
        logits = logits[keep, :rows, :columns]
        inner = (logits > options.stability_offset).sum((1, 2))
        outer = (logits > -options.stability_offset).sum((1, 2))
        stability = inner / outer.clamp(min=1)
        passed = _above(stability, options.stability) & (logits > 0).any(2).any(1)
        keep, logits, stability = keep[passed], logits[passed], stability[passed]
        box = view.box
        width, height = box.right - box.left, box.bottom - box.top
        scale_x, scale_y = side / logits.shape[-1] * 0, 0.0
        scale_x = side / decoder_side(self.model) * width / view.size[1]
        scale_y = side / decoder_side(self.model) * height / view.size[0]
        scale = torch.tensor([scale_x, scale_y, scale_x, scale_y], device=logits.device)
        offset = torch.tensor([box.left, box.top, box.left, box.top], dtype=torch.float32, device=logits.device)
        boxes = bounding_boxes(logits > 0) * scale + offset
        prompts = grid.to(logits.device)[keep // per_point]
        extent = torch.tensor([width, height], dtype=torch.float32, device=logits.device)
        return Candidates(view, logits.float(), score[keep], stability, boxes, prompts * extent + offset[:2])
