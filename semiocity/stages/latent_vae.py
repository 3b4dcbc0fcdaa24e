"""Flux's VAE over pictures of one size, and the payloads of the column `latent`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.numpy import load, save

from semiocity.data.aspects import bucket_ids
from semiocity.data.decode import DecodeError, decode_cropped, picture_size
from semiocity.data.loader import to_unit
from semiocity.stages.base import BadRow

STORED = np.float16


def fitted(data: bytes, sizes: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
    """A picture brought to the one of `sizes` (width, height; from the tallest shape to the widest) that its shape is
    nearest to, as trainings do: uint8 [H, W, 3]. Raises BadRow."""
    try:
        width, height = picture_size(data)
        bucket = int(bucket_ids(np.array([width]), np.array([height]), sizes)[0])
        return decode_cropped(data, sizes[bucket])
    except DecodeError as error:
        raise BadRow(f"image cannot be decoded: {error}") from None


def load_vae(folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    """An AutoencoderKL in eval mode, frozen; from a local folder, safetensors only."""
    loader: Any = AutoencoderKL
    vae = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return vae.to(device).eval().requires_grad_(False)


class Encoder:
    """The VAE on a device."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self.device, self.dtype = device, getattr(torch, dtype)
        self.vae = load_vae(folder, device, self.dtype)
        self.factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels: int = self.vae.config.latent_channels

    @torch.inference_mode()
    def encode(self, pictures: Sequence[NDArray[np.uint8]], flip: bool, keep: str) -> list[bytes | BadRow]:
        """Payloads of pictures [H, W, 3] of one size; for one whose latent is not finite a BadRow."""
        moments = self.moments(pictures, flip)
        kept = moments if keep == "moments" else moments[:, :, : self.channels]
        return [
            payload(keep, one) if np.isfinite(one).all() else BadRow("the VAE gave values that are not finite")
            for one in kept.cpu().numpy().astype(STORED)
        ]

    def moments(self, pictures: Sequence[NDArray[np.uint8]], flip: bool) -> torch.Tensor:
        """Mean and logvar of each picture, and with `flip` of its mirror image: fp32 [b, variants, 2c, h, w]."""
        images = to_unit(torch.from_numpy(np.stack(pictures)).to(self.device)).to(self.dtype)
        variants = [images, images.flip(3)] if flip else [images]
        made = torch.stack([posterior(self.vae, part) for part in variants], 1)
        made[:, :, self.channels :].clamp_(-30.0, 20.0)
        return made


def posterior(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Mean and logvar side by side, fp32 [b, 2c, h, w], of images [b, 3, H, W] in [-1, 1]."""
    return vae.encode(images).latent_dist.parameters.float()


def payload(name: str, variants: NDArray[Any]) -> bytes:
    """The payload of a row."""
    return save({name: np.ascontiguousarray(variants)})


def read_payload(data: bytes) -> tuple[str, NDArray[Any]]:
    """`moments` or `mean`, and the variants [v, c, h, w]. ValueError when it is damaged."""
    try:
        ((name, variants),) = load(data).items()
    except Exception as error:  # safetensors raises its own kind, and KeyErrors
        raise ValueError(f"no latent: {error}") from None
    return name, variants
