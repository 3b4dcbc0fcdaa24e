"""The batched mask generator against transformers' own pipeline and against a plain loop over points."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stage_data import contents, read_column, run_stage
from tiny_models import SAM_SIZE, save_sam
from transformers import SamModel, SamProcessor, pipeline

from semiocity.data.sources.city import scene
from semiocity.stages.base import make_stage
from semiocity.stages.masks import load
from semiocity.stages.sam import MaskGenerator, Options, bounding_boxes, crop_boxes, point_grid

OPEN = Options(points_per_side=4, points_per_batch=5, iou=0, stability=0, overlap=1.0)
"""Lets every mask pass."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sam(tmp_path_factory.mktemp("models") / "sam")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [scene(1, i, width, height).image for i, (width, height) in enumerate([(320, 240), (128, 96), (96, 200)])]


def generator(folder: Path, **options: Any) -> MaskGenerator:
    return MaskGenerator(folder, "cpu", "float32", OPEN._replace(**options))


def peer(folder: Path, picture: np.ndarray, **more: Any) -> list[np.ndarray]:
    """Masks by transformers' pipeline."""
    model = SamModel.from_pretrained(folder)
    processor = SamProcessor.from_pretrained(folder).image_processor
    settings = {"points_per_crop": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0, "crops_nms_thresh": 1.0}
    found = pipeline("mask-generation", model=model, image_processor=processor)(
        Image.fromarray(picture), **{**settings, **more}
    )
    masks = [np.asarray(mask).astype(bool) for mask in found["masks"]]
    return [mask for mask in masks if mask.any()]


def without_peer(these: Iterable[np.ndarray], those: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Those of `these` masks that none of `those` equals.

    Up to four pixels may differ: sums in other orders differ in their last bits, and some logits are all but zero.
    """
    others = np.stack(list(those))
    return [mask for mask in these if (others != mask).sum((1, 2)).min() > 4]


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_masks_are_those_of_transformers_pipeline(folder: Path, pictures: list[np.ndarray], threshold: float) -> None:
    found = generator(folder, iou=threshold).masks(pictures, batch=2)
    for masks, picture in zip(found, pictures, strict=True):
        expected = peer(folder, picture, pred_iou_thresh=threshold)
        assert not without_peer(masks.arrays(), expected)
        # The pipeline also has masks of which nothing is left at the decoder's size.
        assert all(mask.mean() < 0.01 for mask in without_peer(expected, masks.arrays()))
        assert len(masks.items) > 3


def test_masks_of_crops_lie_where_transformers_pipeline_has_them(folder: Path) -> None:
    pictures = [scene(1, i, 320, 240).image for i in range(3)]
    whole = generator(folder).masks(pictures, batch=3)
    found = generator(folder, crop_layers=1).masks(pictures, batch=3)
    assert sum(len(m.items) for m in found) > sum(len(m.items) for m in whole), "no crop gave anything to compare"
    for masks, picture in zip(found, pictures, strict=True):
        # The pipeline judges by the enlarged mask what is cut off at a crop's edge, ours a little more strictly.
        assert not without_peer(masks.arrays(), peer(folder, picture, crops_n_layers=1))


def test_filters_and_duplicates_are_those_of_a_plain_loop(folder: Path, pictures: list[np.ndarray]) -> None:
    options = OPEN._replace(iou=0.7, stability=0.35, stability_offset=0.5, overlap=0.6)
    made = MaskGenerator(folder, "cpu", "float32", options)
    for masks, picture in zip(made.masks(pictures, batch=3), pictures, strict=True):
        expected = plain_loop(made, picture, options)
        assert not without_peer(masks.arrays(), [mask for mask, *_ in expected])
        found = sorted((item["score"], item["stability"], *item["point"]) for item in masks.items)
        assert found == [pytest.approx(facts, abs=0.01) for facts in sorted(facts for _, *facts in expected)]
        assert 0 < len(masks.items) < len(generator(folder).masks([picture], 1)[0].items)


def plain_loop(made: MaskGenerator, picture: np.ndarray, options: Options) -> list[tuple[Any, ...]]:
    """(mask, predicted IoU, stability, x, y) of one picture: one point at a time, the filters one after the other,
    greedy suppression."""
    height, width = picture.shape[:2]
    scale = SAM_SIZE / max(height, width)
    fed = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = made.images(images=[picture], return_tensors="pt")["pixel_values"]
    side = SAM_SIZE // 4
    rows, columns = ceil(fed[0] / 4), ceil(fed[1] / 4)
    found = []
    for i in range(options.points_per_side):
        for j in range(options.points_per_side):
            left, top = ((k + 0.5) / options.points_per_side for k in (j, i))
            x, y = left * fed[1], top * fed[0]
            with torch.no_grad():
                out = made.model(pixel_values=pixels, input_points=torch.tensor([[[[x, y]]]]))
            for logits, score in zip(out.pred_masks[0, 0], out.iou_scores[0, 0].tolist(), strict=True):
                small = logits[:rows, :columns]
                inner = (small > options.stability_offset).sum().item()
                outer = (small > -options.stability_offset).sum().item()
                if score <= options.iou or outer == 0 or inner / outer <= options.stability or not (small > 0).any():
                    continue
                ys, xs = np.nonzero((small > 0).numpy())
                unit = np.array([4 * width / fed[1], 4 * height / fed[0]] * 2)
                box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * unit
                full = torch.nn.functional.interpolate(logits[None, None], (SAM_SIZE, SAM_SIZE), mode="bilinear")
                full = full[..., : fed[0], : fed[1]]
                mask = torch.nn.functional.interpolate(full, (height, width), mode="bilinear")[0, 0] > 0
                found.append((score, box, mask.numpy(), inner / outer, left * width, top * height))
    assert side == logits.shape[-1]
    kept: list[tuple[Any, ...]] = []
    for candidate in sorted(found, key=lambda item: -item[0]):
        if all(box_iou(candidate[1], other[1]) <= options.overlap for other in kept):
            kept.append(candidate)
    return [(mask, score, *facts) for score, _, mask, *facts in kept if mask.any()]


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.clip(high - low, 0, None))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))


@pytest.mark.parametrize("layers", [0, 1])
def test_the_company_in_a_batch_changes_nothing(folder: Path, pictures: list[np.ndarray], layers: int) -> None:
    made = generator(folder, crop_layers=layers, iou=0.3, overlap=0.8)
    alone = [made.masks([picture], batch=1)[0] for picture in pictures]
    for together in (made.masks(pictures, batch=3), made.masks(pictures[::-1], batch=2)[::-1]):
        for masks, single in zip(together, alone, strict=True):
            assert masks.size == single.size and len(masks.items) == len(single.items) > 0
            assert not without_peer(masks.arrays(), single.arrays())
            scores = [sorted(item["score"] for item in m.items) for m in (masks, single)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_one_call_decodes_several_pictures_bit_for_bit_as_alone(folder: Path, pictures: list[np.ndarray]) -> None:
    made = generator(folder)
    pixels = made.images(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeddings = made.model.get_image_embeddings(pixels)
        points = torch.rand((3, 8, 1, 2), generator=torch.Generator().manual_seed(1)) * SAM_SIZE
        together = made.model(image_embeddings=embeddings, input_points=points)
        for i in range(3):
            alone = made.model(image_embeddings=embeddings[i : i + 1], input_points=points[i : i + 1])
            assert torch.equal(together.pred_masks[i], alone.pred_masks[0])
            assert torch.equal(together.iou_scores[i], alone.iou_scores[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_masks_and_does_not_move_the_points(
    folder: Path, pictures: list[np.ndarray], dtype: str
) -> None:
    made = MaskGenerator(folder, "cpu", dtype, OPEN)
    assert all(masks.items for masks in made.masks(pictures, batch=2))
    assert made.model.mask_decoder.transformer.layers[0].mlp.lin1.weight.dtype == getattr(torch, dtype)
    exact = MaskGenerator(folder, "cpu", "float32", OPEN)
    points = torch.linspace(0, SAM_SIZE, 500).repeat(2, 1).T[None, :, None]
    embeddings = [m.model.shared_image_embedding(points, (SAM_SIZE, SAM_SIZE)).float() for m in (made, exact)]
    # The matrix was rounded when it was loaded (relative 1/256); the coordinates must not be.
    assert (embeddings[0] - embeddings[1]).abs().max() < 0.02
    assert len(torch.unique(embeddings[0].squeeze(), dim=0)) == 500


def test_small_masks_are_dropped_on_request(folder: Path, pictures: list[np.ndarray]) -> None:
    (every,) = generator(folder).masks(pictures[:1], 1)
    areas = [item["area"] for item in every.items]
    limit = areas[len(areas) // 2]
    (large,) = generator(folder, min_area=limit).masks(pictures[:1], 1)
    assert [item["area"] for item in large.items] == [area for area in areas if area >= limit]


def test_crops_cover_the_picture_and_overlap() -> None:
    numbers = random.Random(7)
    for _ in range(20):
        width, height, layer = numbers.randrange(20, 400), numbers.randrange(20, 400), numbers.randrange(3)
        seen = np.zeros((height, width), dtype=int)
        boxes = crop_boxes(width, height, layer, 512 / 1500)
        for box in boxes:
            seen[box.top : box.bottom, box.left : box.right] += 1
        assert len(boxes) == 4**layer and seen.min() >= 1
        assert layer == 0 or seen.max() >= 4


def test_points_and_boxes() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    masks = torch.zeros((2, 5, 7), dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 0] = True
    assert bounding_boxes(masks).tolist() == [[2, 1, 6, 3], [0, 4, 1, 5]]


def test_the_mask_column(folder: Path, street: Path, broken_street: Path, tmp_path: Path) -> None:
    args = {"segmenter": "sam", "model": str(folder), "batch": 3, "points_per_side": 3, "iou": 0.3, "stability": 0}
    stage = make_stage("segment", args)
    stage.check()
    made = run_stage(stage, broken_street)
    found = read_column(made)
    assert [row[2] is None for row in found.values()] == [True, True, False, *[True] * 5]
    assert any(scalars["masks"] for _, scalars, _ in found.values())
    for fields, scalars, tombstone in found.values():
        if tombstone is None:
            masks = load(fields["rle"] or b"")
            assert masks.size == (48, 48) and len(masks.items) == scalars["masks"]
            assert all(item["score"] > 0.3 and len(item["point"]) == 2 for item in masks.items)
    before = contents(made)
    shutil.rmtree(made)
    assert contents(run_stage(make_stage("segment", args), broken_street)) == before
