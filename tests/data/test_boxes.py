"""Boxes follow their picture: turned, cut, scaled, clipped, dropped by a stated rule."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from make_images import dice
from PIL import Image

from semiocity.data.boxes import place_boxes, turn
from semiocity.data.geometry import plan_geometry, resize_image, turn_ids, turn_image
from semiocity.data.pack import _pack_row
from semiocity.data.recipe import ImagePolicy, Recipe
from semiocity.data.sources.base import Entry, Raw


def box(*bbox: float, label: str = "car", **attributes: Any) -> dict[str, Any]:
    return {"label": label, "bbox": list(bbox), "attributes": attributes}


def policy(resize: str, *size: int) -> ImagePolicy:
    return ImagePolicy.model_validate({"resize": resize, "size": size})


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        # The middle 40x40 of 80x40 is kept and halved.
        ("crop", (20, 20), [0, 5, 15, 10]),
        ("fit", (40, 40), [5, 5, 20, 10]),
        ("letterbox", (40, 40), [5, 15, 20, 10]),
    ],
)
def test_boxes_follow_the_picture(resize: str, size: tuple[int, int], expected: list[float]) -> None:
    geometry = plan_geometry(policy(resize, *size), 80, 40)
    assert place_boxes([box(10, 10, 40, 20)], (80, 40), geometry)[0]["bbox"] == expected


def test_what_the_crop_leaves_little_of_is_dropped() -> None:
    geometry = plan_geometry(policy("crop", 40, 40), 80, 40)  # keeps x from 20 to 60
    boxes = [box(0, 0, 25, 10, label="slice"), box(10, 0, 20, 10, label="half"), box(0, 0, 20, 10, label="outside")]
    for min_visible, left in ((0.0, ["slice", "half"]), (0.25, ["half"]), (0.5, ["half"]), (0.51, [])):
        placed = place_boxes(boxes, (80, 40), geometry, min_visible=min_visible)
        assert [item["label"] for item in placed] == left


def test_boxes_are_clipped_to_the_picture_and_empty_ones_dropped() -> None:
    placed = place_boxes([box(-5, -5, 20, 20), box(70, 30, 50, 50), box(3, 3, 0, 9), box(9, 9, -4, 4)], (80, 40), None)
    assert [item["bbox"] for item in placed] == [[0, 0, 15, 15], [70, 30, 10, 10]]


def test_fractions_of_the_picture_and_attributes() -> None:
    placed = place_boxes([box(0.25, 0.5, 0.5, 0.25, occluded=True)], (80, 40), None, relative=True)
    assert placed == [{"label": "car", "bbox": [20, 20, 40, 10], "attributes": {"occluded": True}}]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_box_frames_what_it_framed(degrees: int) -> None:
    """Random boxes painted into random pictures: after turning, the painted pixels are the turned box."""
    random = dice()
    for _ in range(20):
        width, height = random.randint(8, 40), random.randint(8, 40)
        x, y = random.randrange(width - 4), random.randrange(height - 4)
        w, h = random.randint(1, width - x), random.randint(1, height - y)
        pixels = np.zeros((height, width), np.uint8)
        pixels[y : y + h, x : x + w] = 1
        turned = np.asarray(turn_image(Image.fromarray(pixels), degrees))
        assert np.array_equal(turned, turn_ids(pixels, degrees))
        left, top, wide, high = turn((x, y, w, h), (width, height), degrees)
        expected = np.zeros_like(turned)
        expected[int(top) : int(top + high), int(left) : int(left + wide)] = 1
        assert np.array_equal(turned, expected)


@pytest.mark.parametrize("resize", ["crop", "fit", "letterbox"])
@pytest.mark.parametrize("rotation", [0, 90, 270])
def test_boxes_lie_where_the_packed_picture_shows_the_object(resize: str, rotation: int) -> None:
    """A white rectangle on black, packed: its box is where the white is, to a pixel."""
    random = dice()
    for _ in range(6):
        width, height = random.randint(60, 160), random.randint(60, 160)
        # In the middle, so that every crop keeps it whole.
        w, h = random.randint(20, 28), random.randint(20, 28)
        x, y = (width - w) // 2, (height - h) // 2
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y : y + h, x : x + w] = 255
        recipe = Recipe.model_validate(
            {
                "name": "x",
                "source": {"kind": "folder", "root": "/nowhere"},
                "image": {"resize": resize, "size": [64, 48], "format": "png"},
            }
        )
        fields, scalars = _pack_row(
            recipe, Entry("a", {}, {}, "train"), Raw(pixels, boxes=[box(x, y, w, h)], rotation=rotation), None
        )
        image = _decode(fields["image"][1])
        assert image.shape[1::-1] == (scalars["width"], scalars["height"])
        rows, columns = np.nonzero(image[..., 0] > 127)
        shown = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        (placed,) = json.loads(fields["boxes"][1])
        left, top, wide, high = placed["bbox"]
        assert np.abs(np.array([left, top, left + wide, top + high]) - shown).max() <= 1.0


def test_label_and_instance_maps_are_turned_with_the_picture() -> None:
    ids = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) % 3
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "source": {"kind": "folder", "root": "/nowhere"},
            "classes": [{"name": str(i), "color": [i, 0, 0]} for i in range(3)],
            "image": {"format": "png"},
        }
    )
    picture = np.repeat(ids[..., None] * 100, 3, axis=2)
    raw = Raw(picture, label=ids, instance=ids.astype(np.uint16), rotation=90)
    fields, _ = _pack_row(recipe, Entry("a", {}, {}, "train"), raw, None)
    assert np.array_equal(_decode(fields["image"][1])[..., 0], np.rot90(ids) * 100)
    for name in ("label", "instance"):
        assert np.array_equal(_decode(fields[name][1]), np.rot90(ids))
    assert json.loads(fields["meta"][1])["changes"] == ["rotation 90"]


def test_letterbox_agrees_with_the_picture_for_a_box_of_the_whole() -> None:
    geometry = plan_geometry(policy("letterbox", 64, 64), 80, 40)
    assert geometry is not None
    image = np.asarray(resize_image(Image.new("L", (80, 40), 255), geometry))
    rows, columns = np.nonzero(image)
    (placed,) = place_boxes([box(0, 0, 80, 40)], (80, 40), geometry)
    assert placed["bbox"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1 - rows.min()]


def _decode(data: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(data)))
