"""The segmenter learns, and judges each image by itself."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from semiocity.models.segmenter import Segmenter, SegmenterConfig


def painted(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [batch, 3, 32, 32] of rectangles in the noisy colour of their class, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(batch, 32, 32, dtype=torch.long)
    for k in range(batch):
        for _ in range(4):
            left, top = torch.randint(0, 24, (2,), generator=generator).tolist()
            labels[k, top : top + 8, left : left + 8] = int(torch.randint(0, 4, (1,), generator=generator))
    colours = torch.tensor([[-0.5, -0.5, -0.5], [0.6, -0.2, 0], [-0.2, 0.6, 0], [0, 0, 0.7]])
    images = colours[labels].permute(0, 3, 1, 2) + 0.3 * torch.randn(batch, 3, 32, 32, generator=generator)
    return images.clamp(-1, 1), labels


def test_shapes_and_size() -> None:
    model = Segmenter(SegmenterConfig(classes=12))
    x = torch.zeros(2, 3, 32, 64)
    assert model(x).shape == (2, 12, 32, 64)
    assert model.features(x).shape == (2, model.feature_width)
    assert 64 <= model.feature_width <= 128
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 1_000_000


def test_an_image_is_judged_alone_and_the_same_in_every_mode() -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(classes=4, width=8))
    x = painted(6, seed=0)[0]
    whole = model.train()(x)
    torch.testing.assert_close(whole[2:3], model.eval()(x[2:3]), rtol=1e-4, atol=1e-5)
    assert not list(model.buffers())


@pytest.mark.parametrize("levels", [1, 3])
def test_learns_to_label(levels: int) -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(classes=4, width=8, levels=levels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        images, labels = painted(8, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = painted(32, seed=10_000)
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    chance = (labels == 0).float().mean().item()
    assert accuracy > 0.93 > chance


def test_features_tell_images_apart() -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(classes=4, width=8))
    images = painted(8, seed=0)[0]
    distances = torch.cdist(model.features(images), model.features(torch.rand_like(images) * 2 - 1))
    assert distances.min() > 1e-3


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        Segmenter(SegmenterConfig(classes=4))(torch.zeros(1, 3, 36, 36))
    with pytest.raises(ValueError, match="width"):
        SegmenterConfig(classes=4, width=0)
