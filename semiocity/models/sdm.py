"""The Semantic Diffusion Model: a U-Net that reads the noisy image in its encoder and the labels in its decoder.

Wang et al. 2022, "Semantic Image Synthesis via Diffusion Models", arXiv 2207.00050. The backbone is ADM's (Dhariwal
and Nichol 2021, arXiv 2105.05233). Encoder: plain residual blocks. Middle and decoder: residual blocks whose norms are
SPADE norms. Head: plain GroupNorm, SiLU and a convolution that starts at zero.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .unet_blocks import (
    Attention,
    Downsample,
    LayoutPyramid,
    PlainNorm,
    Resample,
    ResBlock,
    Upsample,
    timestep_embedding,
    zero_init,
)


@dataclass(frozen=True)
class SDMConfig:
    """Shape of a Semantic Diffusion Model. The defaults are the paper's; `PAPER` is its Cityscapes configuration."""

    label_channels: int
    """Channels of the layout: one per class, plus one if it carries a map of instance edges."""
    image_size: int
    """Side in pixels for which `attention_resolutions` is meant. Other sizes run too, with attention as deep."""
    channels: int = 256
    """Width that `mult` multiplies; the time embedding is four times as wide."""
    mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4)
    """Width of each resolution level, from full size down, in units of `channels`. Fractions make a narrow stem."""
    res_blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    """Sides in pixels of the levels with self-attention. The middle has attention unless this is empty."""
    head_channels: int = 64
    """Width of an attention head."""
    spade_hidden: int = 128
    """Width of the shared convolution of every SPADE norm; the costliest number of a small model."""
    learn_sigma: bool = True
    """Whether three more output channels interpolate the log variance (Nichol and Dhariwal 2021, equation 15)."""
    dropout: float = 0.0
    """Dropout before the second convolution of every residual block."""
    resblock_updown: bool = True
    """Whether residual blocks change the resolution; otherwise convolutions do."""
    patch: int = 1
    """Side of the pixel blocks folded into channels at the input and unfolded at the output (1 in the paper). The U-Net
    then works at 1/patch of the resolution; the labels of a block are folded as well, so none is lost."""
    checkpoint: bool = False
    """Whether residual and attention blocks recompute their activations in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        for name in (
            "label_channels",
            "image_size",
            "channels",
            "res_blocks",
            "head_channels",
            "spade_hidden",
            "patch",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"SDMConfig.{name} must be at least 1, is {getattr(self, name)}")
        if not self.mult or any(m <= 0 or m * self.channels != int(m * self.channels) for m in self.mult):
            raise ValueError(
                f"SDMConfig.mult: every entry times {self.channels} channels must be whole, is {self.mult}"
            )
        if self.image_size % self.stride:
            raise ValueError(f"SDMConfig.image_size must be a multiple of {self.stride}, is {self.image_size}")
        unused = set(self.attention_resolutions) - {self.side(level) for level in range(len(self.mult))}
        if unused:
            raise ValueError(f"SDMConfig.attention_resolutions: no level of this model has side {sorted(unused)}")

    @property
    def stride(self) -> int:
        """Height and width of an input must be multiples of this many pixels."""
        return self.patch * 2 ** (len(self.mult) - 1)

    @property
    def out_channels(self) -> int:
        """3, or 6 with a learned variance."""
        return 6 if self.learn_sigma else 3

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution level, from full size down."""
        return tuple(int(m * self.channels) for m in self.mult)

    def side(self, level: int) -> int:
        """Side in pixels of the feature maps of a level, for an input of `image_size`."""
        return self.image_size // (self.patch * 2**level)


PAPER = SDMConfig(label_channels=35, image_size=256)
"""The paper's model for the 35 label ids of Cityscapes without instance edges: 653,926,918 parameters."""


class SDM(nn.Module):
    """The noise (or v) of a noisy image, given its timestep and layout."""

    def __init__(self, config: SDMConfig) -> None:
        super().__init__()
        self.config = config
        area = config.patch**2
        self.time_embed = nn.Sequential(
            nn.Linear(config.channels, 4 * config.channels),
            nn.SiLU(),
            nn.Linear(4 * config.channels, 4 * config.channels),
        )
        width = config.widths[0]
        self.stem = nn.Conv2d(3 * area, width, 3, padding=1)

        # Every step of the encoder leaves one skip connection, which the decoder takes from the end.
        self.encoder = nn.ModuleList()
        skips = [width]
        for level, out in enumerate(config.widths):
            for _ in range(config.res_blocks):
                self.encoder.append(self._step(width, out, level, labels=False))
                width = out
                skips.append(width)
            if level + 1 < len(config.widths):
                self.encoder.append(nn.ModuleList([self._resample(width, "down", labels=False)]))
                skips.append(width)

        self.middle = nn.ModuleList([self._block(width, width, labels=True), self._block(width, width, labels=True)])
        if config.attention_resolutions:
            self.middle.insert(1, Attention(width, config.head_channels))

        self.decoder = nn.ModuleList()
        for level, out in reversed(list(enumerate(config.widths))):
            for index in range(config.res_blocks + 1):
                step = self._step(width + skips.pop(), out, level, labels=True)
                width = out
                if level > 0 and index == config.res_blocks:
                    step.append(self._resample(width, "up", labels=True))
                self.decoder.append(step)

        self.head_norm = PlainNorm(width)
        self.head = zero_init(nn.Conv2d(width, config.out_channels * area, 3, padding=1))

    def _block(self, width: int, out: int, *, labels: bool, resample: Resample = "none") -> ResBlock:
        config = self.config
        return ResBlock(
            width,
            out,
            4 * config.channels,
            dropout=config.dropout,
            resample=resample,
            label_channels=config.label_channels * config.patch**2 if labels else 0,
            spade_hidden=config.spade_hidden,
        )

    def _step(self, width: int, out: int, level: int, *, labels: bool) -> nn.ModuleList:
        step = nn.ModuleList([self._block(width, out, labels=labels)])
        if self.config.side(level) in self.config.attention_resolutions:
            step.append(Attention(out, self.config.head_channels))
        return step

    def _resample(self, width: int, resample: Resample, *, labels: bool) -> nn.Module:
        if self.config.resblock_updown:
            return self._block(width, width, labels=labels, resample=resample)
        return Upsample(width, learned=True) if resample == "up" else Downsample(width, learned=True)

    def _run(self, step: Any, x: Tensor, time: Tensor, layout: LayoutPyramid) -> Tensor:
        """`x` through the modules of one step, each under activation checkpointing if the configuration says so."""
        for module in step:
            inputs = (x, time, layout) if isinstance(module, ResBlock) else (x,)
            if self.config.checkpoint and torch.is_grad_enabled():
                x = checkpoint(module, *inputs, use_reentrant=False)
            else:
                x = module(*inputs)
        return x

    def forward(self, x: Tensor, t: Tensor, layout: Tensor) -> Tensor:
        """The model's prediction for noisy images.

        `x`: [B, 3, H, W], about unit variance. `t`: [B], timesteps 0 … T-1, integer or float. `layout`: [B, L, H, W],
        one-hot over `label_channels`, of any dtype; all zeros is the null label. Returns [B, 3 or 6, H, W] in fp32.
        Computation runs in the dtype of the weights. Raises ValueError if shapes do not fit the model.
        """
        config = self.config
        self._check(x, t, layout)
        dtype = self.stem.weight.dtype
        time = F.silu(self.time_embed(timestep_embedding(t, config.channels).to(dtype)))
        hidden, labels = x.to(dtype), layout.to(dtype)
        if config.patch > 1:
            hidden, labels = F.pixel_unshuffle(hidden, config.patch), F.pixel_unshuffle(labels, config.patch)
        pyramid = LayoutPyramid(labels)

        hidden = self.stem(hidden)
        skips = [hidden]
        for step in self.encoder:
            hidden = self._run(step, hidden, time, pyramid)
            skips.append(hidden)
        hidden = self._run(self.middle, hidden, time, pyramid)
        for step in self.decoder:
            hidden = self._run(step, torch.cat([hidden, skips.pop()], dim=1), time, pyramid)
        out = self.head(F.silu(self.head_norm(hidden)))
        if config.patch > 1:
            out = F.pixel_shuffle(out, config.patch)
        return out.float()

    def _check(self, x: Tensor, t: Tensor, layout: Tensor) -> None:
        batch, channels, height, width = x.shape
        if channels != 3 or height % self.config.stride or width % self.config.stride:
            raise ValueError(
                f"x must be [B, 3, H, W] with H and W multiples of {self.config.stride}, is {list(x.shape)}"
            )
        if t.shape != (batch,):
            raise ValueError(f"t must be [{batch}], is {list(t.shape)}")
        expected = (batch, self.config.label_channels, height, width)
        if layout.shape != expected:
            raise ValueError(f"layout must be {list(expected)}, is {list(layout.shape)}")
