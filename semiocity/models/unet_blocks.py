"""Parts of the U-Net of diffusion models: time embedding, norms, residual blocks and attention.

The residual block is that of ADM (Dhariwal and Nichol 2021, arXiv 2105.05233, section 3); given label channels, both of
its norms become SPADE norms (Park et al. 2019, arXiv 1903.07291, equation 1), which is how the Semantic Diffusion Model
(Wang et al. 2022, arXiv 2207.00050, section 3.1) shows labels to its decoder.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["none", "up", "down"]


def norm_groups(channels: int, most: int = 32) -> int:
    """Groups of a GroupNorm: `most` (32 in the papers), or fewer where that many do not divide `channels` evenly."""
    return math.gcd(channels, most)


def zero_init(module: nn.Module) -> nn.Module:
    """Zero every parameter of `module` and return it: the branch that it ends then starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines and sines of timesteps at `width // 2` frequencies (Ho et al. 2020, arXiv 2006.11239, appendix B).

    `t` is [B], integers or floats; the result is [B, width] in fp32 whatever the model's dtype is, because bf16 rounds
    integers above 256. An odd `width` leaves a last column of zeros.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / max(half, 1)
    angles = t.to(torch.float32)[:, None] * torch.exp(-math.log(max_period) * exponents)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class LayoutPyramid:
    """One layout at every resolution that a forward pass asks for, each made once (nearest neighbour)."""

    def __init__(self, layout: Tensor) -> None:
        """`layout` is [B, L, H, W], one-hot, in the dtype of the model that reads it."""
        self._levels: dict[tuple[int, int], Tensor] = {(layout.shape[-2], layout.shape[-1]): layout}
        self._full = layout

    def at(self, like: Tensor) -> Tensor:
        """The layout at the height and width of `like`: [B, L, h, w]."""
        size = (like.shape[-2], like.shape[-1])
        if size not in self._levels:
            self._levels[size] = F.interpolate(self._full, size=size, mode="nearest")
        return self._levels[size]


class PlainNorm(nn.GroupNorm):
    """GroupNorm with the call of `SpadeNorm`: the layout is not looked at."""

    def __init__(self, channels: int) -> None:
        super().__init__(norm_groups(channels), channels)

    def forward(self, x: Tensor, layout: LayoutPyramid | None = None) -> Tensor:
        return super().forward(x)


class SpadeNorm(nn.Module):
    """GroupNorm without weights of its own, then a scale and a shift per pixel, read from the layout.

    y = norm(x)·(1 + γ(layout)) + β(layout), where γ and β are 3×3 convolutions of one shared 3×3 convolution with ReLU.
    """

    def __init__(self, channels: int, label_channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels), channels, affine=False)
        self.shared = nn.Conv2d(label_channels, hidden, 3, padding=1)
        # One convolution makes γ and β: the same weights and arithmetic as two, in one call.
        self.scale_shift = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, layout: LayoutPyramid) -> Tensor:
        scale, shift = self.scale_shift(F.relu(self.shared(layout.at(x)))).chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class Downsample(nn.Module):
    """Halve the resolution: by a strided convolution, or by averaging 2×2 pixels where `learned` is false."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then a convolution where `learned` is true."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.op(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """ADM's residual block: norm, SiLU, conv, norm, scale and shift by time, SiLU, dropout, conv, plus skip.

    With `resample` up or down, both branches change resolution (the main one before its first convolution). With
    `label_channels` > 0, both norms are SPADE norms and the block needs the layout.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        *,
        dropout: float = 0.0,
        resample: Resample = "none",
        label_channels: int = 0,
        spade_hidden: int = 128,
    ) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return SpadeNorm(channels, label_channels, spade_hidden) if label_channels else PlainNorm(channels)

        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip: nn.Module = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        match resample:
            case "none":
                self.resample: nn.Module = nn.Identity()
            case "up":
                self.resample = Upsample(in_channels, learned=False)
            case "down":
                self.resample = Downsample(in_channels, learned=False)

    def forward(self, x: Tensor, time: Tensor, layout: LayoutPyramid | None = None) -> Tensor:
        """x [B, C, H, W] and the activated time embedding [B, time_width] to [B, out_channels, H', W']."""
        hidden = self.conv1(self.resample(F.silu(self.norm1(x, layout))))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm2(hidden, layout), 1 + scale)
        hidden = self.conv2(self.dropout(F.silu(hidden)))
        return self.skip(self.resample(x)) + hidden


class Attention(nn.Module):
    """Self-attention over all pixels with a residual, heads of `head_channels` (ADM, section 3)."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(
                f"head_channels = {head_channels} does not divide the {channels} channels of an attention block"
            )
        self.heads = channels // head_channels
        self.norm = PlainNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.transpose(-1, -2).reshape(batch, channels, height, width))
