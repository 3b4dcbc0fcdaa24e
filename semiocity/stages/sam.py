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
    whole: Box
    """The picture."""
    box: Box
    """What is seen of it."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the view as it is fed to the model, without padding."""


@dataclass
class Candidates:
    """Masks of one view that have passed the filters; the first dimension of every tensor is the mask."""

    view: View
    logits: torch.Tensor
    """float32 [masks, side, side]: the decoder's, with the padding."""
    score: torch.Tensor
    """The IoU that the model predicts."""
    stability: torch.Tensor
    boxes: torch.Tensor
    """float32 [masks, 4]: left, top, right, bottom in pixels of the picture."""
    points: torch.Tensor
    """float32 [masks, 2]: x and y of the prompts in pixels of the picture."""

    def take(self, which: torch.Tensor) -> Candidates:
        tensors = (self.logits, self.score, self.stability, self.boxes, self.points)
        return Candidates(self.view, *(tensor[which] for tensor in tensors))


class MaskGenerator:
    """A SAM loaded from a local folder."""

    def __init__(self, folder: Path, device: str, dtype: str, options: Options) -> None:
        self.images = SamProcessor.from_pretrained(folder, local_files_only=True).image_processor
        self.dtype = getattr(torch, dtype)
        # transformers' annotations do not cover its own models.
        loader: Any = SamModel
        model = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=self.dtype)
        self.model = model.to(device).eval()
        if self.dtype != torch.float32:
            # Points lie up to 1024 pixels away: 8 bits of mantissa would move them by pixels.
            positions = self.model.shared_image_embedding.float()
            positions.register_forward_hook(lambda _module, _inputs, output: output.to(self.dtype))
        self.device = device
        self.options = options

    @torch.inference_mode()
    def masks(self, pictures: Sequence[np.ndarray], batch: int) -> list[Masks]:
        """The masks of each picture, uint8 [H, W, 3] of any size; `batch` views are encoded and decoded together."""
        found: list[list[Candidates]] = [[] for _ in pictures]
        for layer in range(self.options.crop_layers + 1):
            side = max(1, self.options.points_per_side // self.options.crop_points_downscale**layer)
            views = [
                View(index, Box(0, 0, pixels.shape[1], pixels.shape[0]), box)
                for index, pixels in enumerate(pictures)
                for box in crop_boxes(pixels.shape[1], pixels.shape[0], layer, self.options.crop_overlap)
            ]
            for start in range(0, len(views), batch):
                for candidates in self._segment(pictures, views[start : start + batch], point_grid(side)):
                    found[candidates.view.picture].append(candidates)
        return [self._finish(parts, pixels.shape[:2]) for parts, pixels in zip(found, pictures, strict=True)]

    def _segment(self, pictures: Sequence[np.ndarray], views: list[View], grid: torch.Tensor) -> Iterator[Candidates]:
        """Candidates of each view. All are encoded together, and the same points of all are decoded together."""
        crops = [pictures[v.picture][v.box.top : v.box.bottom, v.box.left : v.box.right] for v in views]
        inputs = self.images(images=crops, input_data_format="channels_last", return_tensors="pt")
        for view, (height, width) in zip(views, inputs["reshaped_input_sizes"].tolist(), strict=True):
            view.size = (height, width)
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device, self.dtype))
        scale = torch.tensor([[view.size[1], view.size[0]] for view in views], dtype=torch.float32)
        prompts = (grid[None] * scale[:, None]).to(self.device)  # float32 [views, points, 2]
        parts: list[list[Candidates]] = [[] for _ in views]
        for start in range(0, len(grid), self.options.points_per_batch):
            span = slice(start, start + self.options.points_per_batch)
            decoded = self.model(
                image_embeddings=embeddings, input_points=prompts[:, span, None], multimask_output=True
            )
            for place, view in enumerate(views):
                parts[place].append(
                    self._filter(view, grid[span], decoded.pred_masks[place], decoded.iou_scores[place])
                )
        for view_parts in parts:
            candidates = _concatenate(view_parts)
            yield candidates.take(nms(candidates.boxes, candidates.score, self.options.overlap))

    def _filter(self, view: View, grid: torch.Tensor, logits: torch.Tensor, score: torch.Tensor) -> Candidates:
        """Those of the masks of one view, logits [points, masks, h, w] and predicted IoU [points, masks], that pass."""
        options, box = self.options, view.box
        per_point, width = logits.shape[1], logits.shape[-1]
        input_side = self.images.pad_size["width"]
        # Of the padded square that the model works on, the part with the view in it.
        rows, columns = (max(1, ceil(size * width / input_side)) for size in view.size)
        score = score.flatten().float()
        kept = torch.nonzero(_above(score, options.iou)).squeeze(1)
        logits = logits.flatten(0, 1)[kept]
        seen = logits[:, :rows, :columns]
        inner = (seen > options.stability_offset).sum((1, 2))
        outer = (seen > -options.stability_offset).sum((1, 2))
        stability = inner / outer.clamp(min=1)
        passed = _above(stability, options.stability) & (seen > 0).flatten(1).any(1)
        kept, logits, seen, stability = kept[passed], logits[passed], seen[passed], stability[passed]

        extent = torch.tensor([box.right - box.left, box.bottom - box.top], dtype=torch.float32, device=logits.device)
        corner = torch.tensor([box.left, box.top], dtype=torch.float32, device=logits.device)
        fed = torch.tensor([view.size[1], view.size[0]], dtype=torch.float32, device=logits.device)
        boxes = bounding_boxes(seen > 0) * (input_side / width * extent / fed).repeat(2) + corner.repeat(2)
        points = grid.to(logits.device)[kept // per_point] * extent + corner
        candidates = Candidates(view, logits.float(), score[kept], stability, boxes, points)
        return candidates.take(torch.nonzero(~_cut_off(candidates.boxes, box, view.whole)).squeeze(1))

    def _finish(self, parts: list[Candidates], shape: tuple[int, int]) -> Masks:
        """The masks of one picture from the candidates of its views."""
        if len(parts) > 1:
            # What several crops found is best seen in the smallest.
            area = torch.cat([torch.full_like(c.score, _area(c.view.box)) for c in parts])
            kept = nms(torch.cat([c.boxes for c in parts]), 1 / area, self.options.overlap)
            survives = torch.zeros(len(area), dtype=torch.bool, device=area.device)
            survives[kept] = True
            flags = survives.split([len(c.score) for c in parts])
            parts = [c.take(torch.nonzero(flag).squeeze(1)) for c, flag in zip(parts, flags, strict=True)]
        arrays = [np.zeros((0, *shape), dtype=bool)]
        facts: list[dict[str, Any]] = []
        for candidates in parts:
            columns = (candidates.score.tolist(), candidates.stability.tolist(), candidates.points.tolist())
            for start in range(0, len(candidates.score), ENLARGE):
                arrays.append(self._enlarge(candidates.view, candidates.logits[start : start + ENLARGE], shape))
            for score, stability, (x, y) in zip(*columns, strict=True):
                point = [round(x, 2), round(y, 2)]
                facts.append({"score": round(score, 4), "stability": round(stability, 4), "point": point})
        masks = encode(np.concatenate(arrays), facts)
        return Masks(masks.size, [item for item in masks.items if item["area"] >= self.options.min_area])

    def _enlarge(self, view: View, logits: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
        """Masks at the size of the picture, bool [masks, H, W], from logits [masks, side, side].

        As in SAM the logits are enlarged to the model's input, freed of padding, and brought to the view's size.
        """
        box = view.box
        padded = (self.images.pad_size["height"], self.images.pad_size["width"])
        large = interpolate(logits[None], padded, mode="bilinear", align_corners=False)
        large = large[..., : view.size[0], : view.size[1]]
        size = (box.bottom - box.top, box.right - box.left)
        masks = interpolate(large, size, mode="bilinear", align_corners=False)[0] > 0
        whole = np.zeros((len(masks), *shape), dtype=bool)
        whole[:, box.top : box.bottom, box.left : box.right] = masks.cpu().numpy()
        return whole


# ---------------------------------------------------------------- geometry


def point_grid(side: int) -> torch.Tensor:
    """`side` times `side` points, float32 [points, 2]: x and y as shares of a view, the middles of equal cells."""
    line = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def crop_boxes(width: int, height: int, layer: int, overlap: float) -> list[Box]:
    """The crops of a layer: 2**layer a side, the whole picture for layer 0.

    In layer 1 neighbours overlap by `overlap` of the picture's shorter side, in layer n by 2**(1-n) of that.
    """
    side = 2**layer
    shared = int(overlap * min(width, height) * 2 / side) if layer else 0
    crop_width, crop_height = (ceil((shared * (side - 1) + extent) / side) for extent in (width, height))
    return [
        Box(left, top, min(left + crop_width, width), min(top + crop_height, height))
        for left in (i * (crop_width - shared) for i in range(side))
        for top in (i * (crop_height - shared) for i in range(side))
    ]


def bounding_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom (exclusive) of bool masks [masks, h, w], none of them empty; float32 [masks, 4]."""
    edges = []
    for used in (masks.any(1), masks.any(2)):  # columns, then rows
        length = used.shape[1]
        place = torch.arange(length, device=masks.device)
        edges.append((torch.where(used, place, length).amin(1), torch.where(used, place + 1, 0).amax(1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], 1).float()


def _cut_off(boxes: torch.Tensor, view: Box, whole: Box) -> torch.Tensor:
    """Which boxes [n, 4] end at an edge of the view that is not an edge of the whole picture; bool [n]."""
    edge, outer = (torch.tensor(box, dtype=torch.float32, device=boxes.device) for box in (view, whole))
    near_edge = (boxes - edge).abs() <= EDGE_PIXELS
    near_outer = (boxes - outer).abs() <= EDGE_PIXELS
    return (near_edge & ~near_outer).any(1)


def _area(box: Box) -> int:
    return (box.right - box.left) * (box.bottom - box.top)


def _above(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Values above a threshold; 0 lets everything pass."""
    return values > threshold if threshold > 0 else torch.ones_like(values, dtype=torch.bool)


def _concatenate(parts: list[Candidates]) -> Candidates:
    names = ("logits", "score", "stability", "boxes", "points")
    return Candidates(parts[0].view, *(torch.cat([getattr(part, name) for part in parts]) for name in names))
