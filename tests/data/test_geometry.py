"""Pictures and maps are resized together and stay aligned."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import (
    dice,
    pixels,
)
from PIL import Image

from semiocity.data.geometry import plan_geometry, resize_ids, resize_image, resize_instances, scale_ids
from semiocity.data.recipe import ImagePolicy


@pytest.mark.parametrize(
    ("resize", "size", "width", "height", "expected"),
    [
        ("crop", (64, 64), 480, 360, (64, 64)),
        ("crop", (64, 32), 100, 400, (64, 32)),
        ("crop", (128, 128), 40, 50, (128, 128)),
        ("fit", (64, 64), 480, 360, (64, 48)),
        ("fit", (64, 64), 360, 480, (48, 64)),
        ("fit", (640, 640), 48, 32, (48, 32)),
        ("fit", (64, 64), 4000, 3, (64, 1)),
        ("letterbox", (64, 64), 480, 360, (64, 64)),
        ("letterbox", (640, 64), 48, 32, (640, 64)),
    ],
)
def test_sizes(resize: str, size: tuple[int, int], width: int, height: int, expected: tuple[int, int]) -> None:
    geometry = plan_geometry(ImagePolicy.model_validate({"resize": resize, "size": size}), width, height)
    image = Image.fromarray(pixels(width, height))
    ids = np.zeros((height, width), np.uint8)
    if geometry is None:
        assert (width, height) == expected
        return
    assert resize_image(image, geometry).size == expected
    assert resize_ids(ids, geometry, pad=3).shape == expected[::-1]
    assert resize_instances(ids.astype(np.uint16), ids, geometry).shape == expected[::-1]


def test_a_picture_that_has_the_size_is_left_alone() -> None:
    for resize in ("crop", "fit", "letterbox"):
        assert plan_geometry(ImagePolicy.model_validate({"resize": resize, "size": (48, 32)}), 48, 32) is None


@pytest.mark.parametrize("resize", ["crop", "fit", "letterbox"])
def test_pictures_and_labels_stay_aligned(resize: str) -> None:
    """A bright square is found at the same place in the picture, the label map and the instance map."""
    random = dice()
    for _ in range(20):
        width, height = random.randrange(60, 300), random.randrange(60, 300)
        side = min(width, height) // 3
        x, y = (width - side) // 2 + random.randrange(-9, 9), (height - side) // 2 + random.randrange(-9, 9)
        ids = np.zeros((height, width), np.uint8)
        ids[y : y + side, x : x + side] = 1
        policy = ImagePolicy.model_validate(
            {"resize": resize, "size": (random.randrange(24, 90), random.randrange(24, 90))}
        )
        geometry = plan_geometry(policy, width, height)
        if geometry is None:
            continue
        image = np.asarray(resize_image(Image.fromarray(ids * 255), geometry)) > 127
        label = resize_ids(ids, geometry, pad=0) == 1
        instance = resize_instances(ids.astype(np.uint16) * 500, ids, geometry) == 500
        assert np.array_equal(label, instance)
        for axis in (0, 1):
            seen, labelled = np.flatnonzero(image.any(axis)), np.flatnonzero(label.any(axis))
            assert abs(int(seen[0]) - int(labelled[0])) <= 1 and abs(int(seen[-1]) - int(labelled[-1])) <= 1


def test_letterbox_pads_labels_with_the_ignore_id() -> None:
    policy = ImagePolicy.model_validate({"resize": "letterbox", "size": (64, 64)})
    geometry = plan_geometry(policy, 64, 32)
    assert geometry is not None
    padded = resize_ids(np.ones((32, 64), np.uint8), geometry, pad=11)
    assert (padded[:16] == 11).all() and (padded[48:] == 11).all() and (padded[16:48] == 1).all()


def test_the_vote_is_the_most_frequent_id_of_each_cell() -> None:
    random = dice()
    rng = np.random.default_rng(random.randrange(2**32))
    for _ in range(25):
        high, wide = rng.integers(8, 90, 2).tolist()
        height, width = int(rng.integers(1, high // 2 + 1)), int(rng.integers(1, wide // 2 + 1))
        ids = rng.integers(0, 5, (high, wide)).astype(np.uint8)
        voted = scale_ids(ids, (width, height))
        for r in range(height):
            for c in range(width):
                rows = slice(r * high // height, (r + 1) * high // height)
                cell = ids[rows, c * wide // width : (c + 1) * wide // width]
                assert voted[r, c] == np.bincount(cell.ravel()).argmax()


def test_enlarging_keeps_every_id_in_its_place() -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(scale_ids(ids, (12, 9)), ids.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(scale_ids(ids, (4, 3)), ids)
    nearest = scale_ids(np.arange(100, dtype=np.uint8).reshape(10, 10), (7, 7))
    centres = [int((i + 0.5) * 10 / 7) for i in range(7)]
    assert nearest.tolist() == [[10 * row + column for column in centres] for row in centres]
    wide = np.tile(np.arange(40, dtype=np.uint8), (3, 1))
    assert scale_ids(wide, (10, 6)).shape == (6, 10), "shrunk on one side, enlarged on the other"


def test_instances_agree_with_the_labels_that_won() -> None:
    rng = np.random.default_rng(dice().randrange(2**32))
    geometry = plan_geometry(ImagePolicy.model_validate({"resize": "crop", "size": (16, 16)}), 64, 64)
    assert geometry is not None
    labels = rng.integers(0, 3, (64, 64)).astype(np.uint8)
    instances = (labels.astype(np.uint16) * 1000) + rng.integers(0, 3, (64, 64)).astype(np.uint16)
    assert np.array_equal(resize_instances(instances, labels, geometry) // 1000, resize_ids(labels, geometry, 0))
