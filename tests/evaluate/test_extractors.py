"""Inception through its real loading code, and distances between images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import inception_v3

from semiocity.errors import UserError
from semiocity.evaluate.diversity import mean_pair, perceptual, pixel_rms
from semiocity.evaluate.extractors import InceptionFeatures, SegmenterFeatures
from semiocity.models.segmenter import Segmenter, SegmenterConfig

CPU = torch.device("cpu")


def _images(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as torchvision saves them, auxiliary classifier included."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), path)
    return path


def test_inception_gives_its_pooled_features(inception: Path) -> None:
    extractor = InceptionFeatures(inception, CPU)
    images = _images(2)
    found = extractor(images)
    assert found.shape == (2, 2048)

    whole = inception_v3(weights=None, init_weights=False)
    whole.load_state_dict(torch.load(inception, weights_only=True))
    pooled = []
    whole.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    large = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, (299, 299), mode="bicubic", antialias=True
    ).clamp(-1, 1)
    with torch.no_grad():
        whole.eval()(large)
    expected = pooled[0].numpy()
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_inception_is_named_by_its_weights(inception: Path, tmp_path: Path) -> None:
    state = torch.load(inception, weights_only=True)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "inception.safetensors")
    one, other = InceptionFeatures(inception, CPU), InceptionFeatures(tmp_path / "inception.safetensors", CPU)
    assert one.name != other.name
    assert np.array_equal(one(_images(1)), other(_images(1)))


def test_refuses_what_is_no_inception(inception: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"<html>404</html>")
    for name, message in (
        ("other.pth", "no state dict of torchvision's inception_v3"),
        ("broken.pth", "not readable as weights"),
        ("absent.pth", "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            InceptionFeatures(tmp_path / name, CPU)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmenterConfig(classes=5, width=8, levels=3)).eval()


def test_segmenter_features_have_its_width_and_name(segmenter: Segmenter) -> None:
    extractor = SegmenterFeatures(segmenter, "segmenter-0123456789", CPU)
    assert extractor(_images(3)).shape == (3, 32)
    assert extractor.name.startswith("segmenter-0123456789")


def test_perceptual_distance_by_definition(segmenter: Segmenter) -> None:
    images = _images(3)
    found = perceptual(segmenter, images, CPU)
    with torch.no_grad():
        maps = segmenter.maps(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    for i in range(3):
        for j in range(3):
            levels = []
            for level in maps:
                a, b = (level[k].double() / level[k].double().norm(dim=0).clamp(min=1e-12) for k in (i, j))
                levels.append((a - b).square().sum(dim=0).mean())
            assert float(found[i, j]) == pytest.approx(float(torch.stack(levels).mean()), abs=1e-6)
    assert mean_pair(found) == pytest.approx(float(found[0, 1] + found[0, 2] + found[1, 2]) / 3)


def test_equal_images_do_not_differ(segmenter: Segmenter) -> None:
    images = np.repeat(_images(1), 3, axis=0)
    assert mean_pair(perceptual(segmenter, images, CPU)) == pytest.approx(0, abs=1e-12)
    assert pixel_rms(images) == 0


def test_pixel_rms_by_hand() -> None:
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    images[1] = 10
    images[2, :2] = 10
    assert pixel_rms(images) == pytest.approx((10 + np.sqrt(50) + np.sqrt(50)) / 3)
