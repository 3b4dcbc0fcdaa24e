"""What diffusers paints, to hold image grids against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from tiny_flux import CHANNELS, TOKENS

from semiocity.train.noise import generator


def painted(pipeline: Any, prompt: str, place: int, steps: int, guidance: float) -> np.ndarray:
    """A picture of 32 pixels by diffusers, from the noise that a place of an image grid begins with."""
    noise = torch.from_numpy(generator(0, 0, place).standard_normal((1, CHANNELS, 4, 4), dtype=np.float32))
    image = pipeline(
        prompt,
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        latents=FluxPipeline._pack_latents(noise, 1, CHANNELS, 4, 4),
        output_type="np",
    ).images[0]
    return (image * 255).round().astype(np.uint8)


def grid(run: Path) -> np.ndarray:
    """The last grid of a run, [pictures, 32, width, 3]."""
    pixels = np.array(Image.open(max((run / "grids").glob("step-*.png"))))
    return pixels.reshape(-1, 32, *pixels.shape[1:])


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pixels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())
