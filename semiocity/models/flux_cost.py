"""What Flux costs: FLOPs, bytes of cached latents and texts, and which is cheaper, caching or encoding while training.

Login-node code. FLOPs count a multiplication and an addition as two; the closed forms were compared with torch's
FlopCounterMode on the real architectures (exact for the transformer's matrices, within 1 % for the VAE).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from semiocity.models import flux_names

STORED_BYTES = 2
"""fp16."""
VAE_FLOPS_PER_PIXEL = 4.13e6
"""Convolutions of Flux's VAE encoder."""
VAE_ATTENTION = 4 * 512
"""FLOPs of its one attention layer for each pair of latent pixels."""
TEXT_FLOPS_PER_TOKEN = 9.46e9
"""T5-XXL's encoder at 512 tokens; CLIP is nothing beside it."""
GPU_FLOPS = 150e12
"""FLOP/s that a GPU is taken to reach: half the bf16 peak of an A100."""
GB_PER_GPU_HOUR = 100.0
"""GB stored for a month that cost as much as a GPU for an hour, roughly, on most price lists."""


class Choice(NamedTuple):
    """Caching against encoding while training."""

    cached_gb: float
    """Bytes of the column (10⁹)."""
    gpu_hours_fly: float
    """To encode every sample each time that it is seen."""
    gpu_hours_cached: float
    """To encode every row once."""

    @property
    def cost_cached(self) -> float:
        """In GPU hours, storage included."""
        return self.cached_gb / GB_PER_GPU_HOUR + self.gpu_hours_cached

    @property
    def cached(self) -> bool:
        """Whether caching is cheaper."""
        return self.cost_cached < self.gpu_hours_fly


def forward_flops(config: Mapping[str, Any], image_tokens: int, text_tokens: int) -> float:
    """Of one forward pass of the transformer for one image: blocks alone, which is all but a thousandth."""
    d = flux_names.width(config)
    n = image_tokens + text_tokens
    double, single = config["num_layers"], config["num_single_layers"]
    # A stream of a double block has 4 projections and a 4-fold MLP: 12 d². A single block 3 + 4 + 5 = 12 d².
    return 2 * n * (double + single) * 12 * d * d + (double + single) * 4 * n * n * d


def training_flops(config: Mapping[str, Any], image_tokens: int, text_tokens: int, recompute: bool = False) -> float:
    """Forward and backward of one image where all weights are trained; with full recomputation a third more."""
    return forward_flops(config, image_tokens, text_tokens) * (4 if recompute else 3)


def vae_flops(width: int, height: int, factor: int = 8) -> float:
    """Encoding one picture with Flux.1's VAE."""
    pixels = width * height
    return VAE_FLOPS_PER_PIXEL * pixels + VAE_ATTENTION * (pixels / factor**2) ** 2


def text_flops(tokens: int) -> float:
    """Encoding one prompt with T5-XXL and CLIP."""
    return TEXT_FLOPS_PER_TOKEN * tokens


def latent_bytes(width: int, height: int, factor: int, channels: int, tensors: int) -> int:
    """Payload of a row of the column `latent`, but for some hundred bytes of headers."""
    return width // factor * (height // factor) * channels * tensors * STORED_BYTES


def text_bytes(tokens: int, width: int, pooled: int) -> int:
    """Payload of a row of the column `text`."""
    return (tokens * width + pooled) * STORED_BYTES


def choice(bytes_a_row: float, flops_a_row: float, rows: int, samples: int, variants: int = 1) -> Choice:
    """For a dataset of `rows` of which a training sees `samples`; `variants` are encoded of each row when caching."""
    hours = flops_a_row / GPU_FLOPS / 3600
    return Choice(bytes_a_row * rows / 1e9, hours * samples, hours * rows * variants)


def choice_line(what: str, now: str, found: Choice) -> str:
    """What a training prints; `now` is "column" or "fly"."""
    better = "column" if found.cached else "fly"
    saved = abs(found.cost_cached - found.gpu_hours_fly)
    worth = better != now and saved > max(1.0, 0.1 * found.gpu_hours_fly)
    verdict = f'model.{what} = "{better}" would be cheaper' if worth else "as it is"
    return (
        f"{what}: cached they take {found.cached_gb:,.1f} GB and {found.gpu_hours_cached:,.1f} GPU hours once, encoded "
        f"while training {found.gpu_hours_fly:,.1f} GPU hours; {verdict}"
    )


def latent_line(width: int, height: int, factor: int, channels: int, tensors: int) -> str:
    """What the stage `latent` prints."""
    size = latent_bytes(width, height, factor, channels, tensors)
    return (
        f"{size / 1e6:.2f} MB a row, {size / 1e3:,.0f} GB a million; encoding while training would cost "
        f"{vae_flops(width, height, factor) / 1e12:.2f} TFLOP a sample"
    )


def text_line(tokens: int, width: int, pooled: int) -> str:
    """What the stage `text` prints."""
    size = text_bytes(tokens, width, pooled)
    return (
        f"{size / 1e6:.2f} MB a row, {size / 1e3:,.0f} GB a million; encoding while training would cost "
        f"{text_flops(tokens) / 1e12:.2f} TFLOP a sample (T5-XXL) and 10 GB of each GPU"
    )
