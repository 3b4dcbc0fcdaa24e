"""The parts of the U-Net against closed forms and naive versions."""

import math

import pytest
import torch
from torch.nn import functional as F

from semiocity.models.unet_blocks import (
    Attention,
    LayoutPyramid,
    ResBlock,
    SpadeNorm,
    norm_groups,
    timestep_embedding,
)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 16), (24, 8), (12, 4), (7, 1)])
def test_groups_divide_narrow_layers(channels: int, groups: int) -> None:
    assert norm_groups(channels) == groups


def test_timestep_embedding_formula() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3, 999]), 8)
    for row, t in zip(embedding.tolist(), (0, 3, 999)):
        angles = [t * 10_000 ** (-k / 4) for k in range(4)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], abs=1e-4)


def test_timestep_embedding_is_fp32_whatever_comes_in() -> None:
    assert timestep_embedding(torch.tensor([5], dtype=torch.int64), 7).dtype == torch.float32
    assert timestep_embedding(torch.tensor([5.5], dtype=torch.float64), 7).shape == (1, 7)


def test_spade_with_one_constant_class_is_an_affine_map() -> None:
    torch.manual_seed(0)
    norm = SpadeNorm(channels=6, label_channels=4, hidden=5)
    x = torch.randn(2, 6, 12, 12)
    layout = F.one_hot(torch.full((2, 12, 12), 2), 4).permute(0, 3, 1, 2).float()
    out = norm(x, LayoutPyramid(layout))
    # Far from the border every 3x3 window is full, so a convolution of the constant layout is the sum of its kernel.
    weights = dict(norm.named_parameters())
    hidden = F.relu(weights["shared.weight"][:, 2].sum((1, 2)) + weights["shared.bias"])
    scale, shift = (weights["scale_shift.weight"].sum((2, 3)) @ hidden + weights["scale_shift.bias"]).chunk(2)
    expected = norm.norm(x) * (1 + scale[:, None, None]) + shift[:, None, None]
    torch.testing.assert_close(out[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-5)


def test_spade_reads_the_class_at_each_place() -> None:
    torch.manual_seed(0)
    norm = SpadeNorm(channels=6, label_channels=4, hidden=5)
    x = torch.randn(1, 6, 16, 16)
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    flat = norm(x, LayoutPyramid(F.one_hot(labels, 4).permute(0, 3, 1, 2).float()))
    labels[:, :, 8:] = 1
    split = norm(x, LayoutPyramid(F.one_hot(labels, 4).permute(0, 3, 1, 2).float()))
    torch.testing.assert_close(flat[..., :6], split[..., :6])
    assert (flat[..., 10:] - split[..., 10:]).abs().min() > 0


def test_pyramid_makes_each_level_once_and_stays_one_hot() -> None:
    layout = F.one_hot(torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0)), 3)
    pyramid = LayoutPyramid(layout.permute(0, 3, 1, 2).float())
    half = pyramid.at(torch.empty(1, 99, 4, 4))
    assert half is pyramid.at(torch.empty(1, 1, 4, 4))
    assert torch.equal(half.sum(1), torch.ones(1, 4, 4)) and set(half.unique().tolist()) == {0.0, 1.0}


def test_residual_branch_starts_as_nothing() -> None:
    x, time = torch.randn(2, 8, 8, 8), torch.randn(2, 16)
    assert torch.equal(ResBlock(8, 8, 16)(x, time), x)
    torch.testing.assert_close(ResBlock(8, 8, 16, resample="down")(x, time), F.avg_pool2d(x, 2))
    torch.testing.assert_close(
        ResBlock(8, 8, 16, resample="up")(x, time), x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


def test_attention_matches_the_naive_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(channels=8, head_channels=4)
    torch.nn.init.normal_(attention.get_parameter("out.weight"))
    x = torch.randn(2, 8, 3, 5)
    query, key, value = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)
    heads = []
    for q, k, v in zip(query.split(4, 1), key.split(4, 1), value.split(4, 1)):
        weights = torch.softmax(q.transpose(1, 2) @ k / 2, dim=-1)
        heads.append((weights @ v.transpose(1, 2)).transpose(1, 2))
    expected = x + attention.out(torch.cat(heads, dim=1).reshape(2, 8, 3, 5))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
