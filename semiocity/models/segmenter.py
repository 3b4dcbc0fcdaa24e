"""A small U-Net that labels pixels: the local judge of generated images, and the local feature extractor.

Ronneberger et al. 2015 (arXiv 1505.04597) in miniature, with residual-free double convolutions and GroupNorm. There are
no running statistics, so a prediction depends on its own image alone, and training and evaluation mode are the same
function.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class SegmenterConfig:
    """Shape of a segmenter."""

    classes: int
    """Channels of the logits."""
    width: int = 16
    """Channels at full resolution; each level below has twice as many, up to 8 times."""
    levels: int = 4
    """Resolution levels; images must be multiples of 2^(levels-1) pixels."""

    def __post_init__(self) -> None:
        for name in ("classes", "width", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"SegmenterConfig.{name} must be at least 1, is {getattr(self, name)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full size down."""
        return tuple(self.width * min(2**level, 8) for level in range(self.levels))


class Segmenter(nn.Module):
    """Images in [-1, 1] to class logits, and to one feature vector an image."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoder = nn.ModuleList(_double_conv(i, o) for i, o in zip((3, *widths[:-1]), widths, strict=True))
        self.decoder = nn.ModuleList(
            _double_conv(below + here, here) for here, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], config.classes, 1)

    @property
    def feature_width(self) -> int:
        """Length D of the vectors that `features` returns."""
        return self.config.widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] to logits [B, classes, H, W]."""
        levels = self.maps(images)
        hidden = levels.pop()
        for block in self.decoder:
            hidden = block(torch.cat([F.interpolate(hidden, scale_factor=2, mode="nearest"), levels.pop()], dim=1))
        return self.head(hidden)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] to [B, D]: the mean over pixels of the deepest feature map."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps of every level, from full size down."""
        stride = 2 ** (self.config.levels - 1)
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % stride or images.shape[3] % stride:
            raise ValueError(f"images must be [B, 3, H, W] with multiples of {stride}, are {list(images.shape)}")
        maps: list[Tensor] = []
        hidden = images
        for level, block in enumerate(self.encoder):
            hidden = block(F.max_pool2d(hidden, 2) if level else hidden)
            maps.append(hidden)
        return maps


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        groups = math.gcd(out_channels, 8)
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers += [conv, nn.GroupNorm(groups, out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
