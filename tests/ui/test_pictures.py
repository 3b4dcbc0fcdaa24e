"""Thumbnails are small and true; ids survive; damaged input is an error with words."""

import colorsys
import io

import numpy as np
import pytest
from gallery_town import two_masks
from PIL import Image

from semiocity.errors import UserError
from semiocity.ui.browse import pictures


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def decoded(made: tuple[str, bytes]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(made[1])))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_thumbnails_keep_shape_and_colour(kind: str) -> None:
    pixels = np.zeros((300, 900, 3), np.uint8)
    pixels[:, :450] = (200, 40, 40)
    small = decoded(pictures.thumbnail(encoded(pixels, kind), 240))
    assert small.shape == (80, 240, 3)
    assert np.abs(small[40, 40].astype(int) - (200, 40, 40)).max() < 12
    assert small[40, 200].max() < 12


def test_small_pictures_are_not_enlarged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(decoded(pictures.thumbnail(encoded(pixels), 160)), pixels)


def test_label_maps_are_picked_not_mixed() -> None:
    ids = np.zeros((400, 400), np.uint8)
    ids[:, 200:] = 1
    ids[:200, 200:] = 255
    colours = pictures.class_colours([(10, 20, 30), (200, 100, 50)])
    small = decoded(pictures.map_thumbnail(encoded(ids), colours, 160))
    found = {tuple(map(int, colour)) for colour in small.reshape(-1, 3)}
    assert found == {(10, 20, 30), (200, 100, 50), (0, 0, 0)}


def test_instance_ids_survive_eight_bits() -> None:
    ids = np.array([[0, 1, 255, 256, 65535]], np.uint16)
    rgb = np.asarray(Image.open(io.BytesIO(pictures.ids_as_rgb(encoded(ids))))).astype(int)
    assert (rgb[..., 0] * 256 + rgb[..., 1]).tolist() == ids.tolist()


def test_small_masks_lie_above_large_ones() -> None:
    regions = pictures.regions_of(two_masks(), 540)
    assert regions.shape == (32, 64)
    assert (regions[5, 12], regions[12, 25], regions[0, 0]) == (1, 2, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [32, 65]},
        {"size": [10**6, 10**6]},
        {"size": "x"},
        {"masks": [{"counts": "oooooooooooo"}]},
        {"masks": [{"counts": "é"}]},
        {"masks": [{}]},
    ],
)
def test_malformed_masks_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="masks: "):
        pictures.regions_of({**two_masks(), **change}, 540)


def test_damaged_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="no picture"):
        pictures.thumbnail(b"<html>", 160)
    with pytest.raises(UserError, match="cannot be decoded"):
        pictures.thumbnail(encoded(np.zeros((64, 64, 3), np.uint8))[:-30], 160)


def test_number_colours_are_far_apart_and_repeat() -> None:
    painted = pictures.number_colours(np.arange(0, 258)[None])[0]
    assert painted[0].tolist() == [0, 0, 0, 0]
    assert painted[1].tolist() == painted[257].tolist()
    hues = [colorsys.rgb_to_hls(*(painted[i, :3] / 255))[0] for i in (1, 2)]
    assert abs(hues[0] - hues[1]) > 0.2


def test_thumbnails_in_memory_are_bounded() -> None:
    kept = pictures.Thumbnails(kept_mb=1)
    made: list[int] = []

    def make(n: int) -> tuple[str, bytes]:
        made.append(n)
        return "image/png", bytes(300_000)

    for n in (0, 1, 2, 0, 3, 0, 1):
        kept.get(n, lambda n=n: make(n))  # type: ignore[misc]
    assert made == [0, 1, 2, 3, 1], "the one used least lately goes first"
