"""Hashes of pictures: the same picture in another form is near, another picture is not."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alike import CHANGES, cropped, jpeg, png
from PIL import Image
from stage_data import key_of, read_column, run_stage, write_base

from semiocity.data.duplicates import Limits
from semiocity.data.sources.city import scene
from semiocity.stages.base import make_stage
from semiocity.stages.perceptual import describe

CAMVID = Path(os.environ.get("SEMIOCITY_CAMVID", Path(__file__).parents[3] / "shared" / "data" / "camvid"))
LIMITS = Limits()


def described(data: bytes) -> dict[str, Any]:
    return describe(data, Image.open(io.BytesIO(data)))


def apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, int]:
    """Bits of phash and of gradients that differ."""
    bits = [(one[name] ^ other[name]) & (2**64 - 1) for name in ("phash", "gradients")]
    return bits[0].bit_count(), bits[1].bit_count()


def near(one: dict[str, Any], other: dict[str, Any]) -> bool:
    distance, gradients = apart(one, other)
    return distance <= LIMITS.distance and gradients <= LIMITS.gradients


@pytest.fixture(scope="module")
def city() -> list[Image.Image]:
    return [Image.fromarray(scene(3, number, 160, 160).image) for number in range(12)]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    if not CAMVID.is_dir():
        pytest.skip("no photographs: ../shared/data/camvid is not there")
    return [Image.open(path).convert("RGB") for path in sorted((CAMVID / "train").glob("*.jpg"))[::60]]


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_in_another_form_is_near(change: str, city: list[Image.Image]) -> None:
    for image in city:
        assert near(described(png(image)), described(CHANGES[change](image)))


def test_photographs_in_another_form_are_near(photographs: list[Image.Image]) -> None:
    found = []
    for image in photographs:
        whole = described(png(image))
        for name, change in CHANGES.items():
            assert near(whole, described(change(image))), name
        found.append(near(whole, described(jpeg(cropped(image, 0.02)))))
    assert sum(found) >= len(found) - 1, "cropped by 2 % on each side"


def test_other_pictures_are_not_near(city: list[Image.Image]) -> None:
    found = [described(png(image)) for image in city]
    assert not [(i, j) for i in range(len(found)) for j in range(i) if near(found[i], found[j])]
    assert min(apart(a, b)[0] for a in found for b in found if a is not b) > LIMITS.distance


def test_photographs_of_other_drives_are_not_near() -> None:
    if not CAMVID.is_dir():
        pytest.skip("no photographs: ../shared/data/camvid is not there")
    paths = sorted((CAMVID / "train").glob("*.jpg"))[::4]
    found = [(path.name.split("_")[0], described(path.read_bytes())) for path in paths]
    assert len({drive for drive, _ in found}) == 3
    assert not [1 for a, one in found for b, other in found if a != b and near(one, other)]


def test_equal_pixels_have_one_hash_in_every_form() -> None:
    image = Image.fromarray(scene(1, 2, 64, 40).image)
    grey = image.convert("L")
    forms = [png(image), png(image.convert("RGBA"))]
    assert len({described(data)["pixels_sha256"] for data in forms}) == 1
    assert described(png(grey))["pixels_sha256"] == described(png(grey.convert("RGB")))["pixels_sha256"]
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert described(png(turned))["pixels_sha256"] != described(png(image))["pixels_sha256"]
    uniform = Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6)), Image.new("RGB", (8, 3))
    assert len({described(png(form))["pixels_sha256"] for form in uniform}) == 3


def test_the_definition() -> None:
    """Written out again with floating point and loops, from the docstring and the cited sources."""
    image = Image.fromarray(scene(1, 3, 64, 96).image)
    found = described(png(image))
    whole = np.asarray(image).astype(float)
    cells = whole.reshape(32, image.height // 32, 32, image.width // 32, 3).mean(axis=(1, 3)) @ [0.299, 0.587, 0.114]
    k = np.arange(32)
    cosines = np.sqrt(2 / 32) * np.cos(np.pi * np.outer(k, 2 * k + 1) / 64)
    cosines[0] /= np.sqrt(2)
    waves = cosines @ cells @ cosines.T
    lowest = [(u, s - u) for s in range(1, 12) for u in range(s + 1)][:64]
    values = np.array([waves[u, v] for u, v in lowest])
    # Values near 0 may fall either way: Pillow shrinks in two passes, each rounded.
    bits = [(found["phash"] >> (63 - i)) & 1 for i in range(64)]
    assert [bit for bit, value in zip(bits, values) if abs(value) > 4] == [v > 0 for v in values if abs(v) > 4]
    assert found["detail"] == pytest.approx(np.median(np.abs(values)), abs=1)
    assert found["deviation"] == pytest.approx(cells.std(), abs=0.5)
    assert (found["width"], found["height"]) == image.size
    assert [found[name] for name in ("red", "green", "blue")] == pytest.approx(np.asarray(image).mean((0, 1)), abs=0.6)


def test_hashes_are_the_same_on_every_machine() -> None:
    y, x = np.mgrid[0:48, 0:64]
    image = Image.fromarray(np.stack([x * x // 16, (x * 11 + y * 3) % 256, x * y % 256], axis=2).astype(np.uint8))
    found = described(png(image))
    assert (found["phash"], found["gradients"]) == (PHASH, GRADIENTS)
    assert (found["detail"], found["deviation"]) == (DETAIL, DEVIATION)


PHASH, GRADIENTS, DETAIL, DEVIATION = 2396057525132523814, -2748361685797980618, 29.793, 48.871


@pytest.mark.parametrize("change", ["recompressed", "half the size", "brighter"])
def test_pictures_without_detail_are_known_as_flat(change: str, city: list[Image.Image]) -> None:
    y = np.linspace(200, 140, 120)[:, None, None]
    sky = Image.fromarray((np.broadcast_to(y, (120, 160, 3)) + np.array([0, 10, 40])).astype(np.uint8))
    for image in (Image.new("RGB", (160, 120)), Image.new("RGB", (90, 90), (130, 140, 150)), sky):
        assert described(png(image))["detail"] < LIMITS.flat
        assert described(CHANGES[change](image))["detail"] < LIMITS.flat
    assert min(described(png(image))["detail"] for image in city) > 5 * LIMITS.flat


def test_the_column(tmp_path: Path) -> None:
    image = Image.fromarray(scene(1, 2, 64, 40).image)
    payloads = [("png", png(image)), ("jpg", jpeg(image)), ("jpg", b"no picture")]
    rows: dict[str, dict[str, tuple[str, bytes]]] = {key_of(i): {"image": p} for i, p in enumerate(payloads)}
    rows[key_of(3)] = {}
    folder = run_stage(make_stage("hash", {"hasher": "dct"}), write_base(tmp_path / "small", rows, 2, ()))
    found = read_column(folder)
    for number, (_, data) in enumerate(payloads[:2]):
        fields, scalars, tombstone = found[key_of(number)]
        assert tombstone is None
        assert scalars == described(data) == json.loads(fields["record"] or b"")
        assert scalars["bytes_sha256"] == hashlib.sha256(data).hexdigest()
        assert -(2**63) <= scalars["phash"] < 2**63
    assert found[key_of(2)][2] == ("permanent", "image cannot be decoded: cannot identify image file")
    assert (found[key_of(3)][2] or ("", ""))[1] == "base: taken down"
