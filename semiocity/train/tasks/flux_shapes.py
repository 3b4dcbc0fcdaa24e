"""Flux without contents, for `semiocity fit`: modules and a batch of the right shapes and types on torch's meta device,
from the configuration files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import AutoConfig, CLIPTextModel, T5EncoderModel

from semiocity.stages import flux_parts
from semiocity.stages.text_encoders import CLIP

if TYPE_CHECKING:
    from semiocity.train.tasks.flux import FluxTask


def wanted() -> bool:
    """Whether modules are being made on the meta device."""
    return torch.get_default_device().type == "meta"


def transformer(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The transformer that `config` describes."""
    maker: Any = FluxTransformer2DModel
    return nn.Module.to(maker.from_config(dict(config)), dtype)


def vae(folder: Path, dtype: torch.dtype) -> Any:
    """The VAE of a pipeline."""
    maker: Any = AutoencoderKL
    return nn.Module.to(maker.from_config(flux_parts.config(folder, "vae", "model.pretrained")), dtype)


def encoder(folder: Path, part: str, dtype: torch.dtype) -> Any:
    """A text encoder of a pipeline."""
    maker: Any = CLIPTextModel if part == CLIP else T5EncoderModel
    return nn.Module.to(maker(AutoConfig.from_pretrained(folder / part, local_files_only=True)), dtype)


def size(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


def example(task: FluxTask, samples: int, height: int, width: int) -> dict[str, Tensor]:
    """As `FluxTask.collate`, for latents that are drawn from moments."""
    latent = (samples, task.channels, height // task.factor, width // task.factor)
    tensors = {
        "weight": torch.empty(samples, dtype=torch.float32),
        "share": torch.empty(samples, dtype=torch.float64),
        "drop": torch.empty(samples, dtype=torch.bool),
        "place": torch.empty(samples, dtype=torch.int64),
        "noise": torch.empty(latent),
        "draw": torch.empty(latent),
    }
    if task.fly_latents:
        tensors["image"] = torch.empty(samples, height, width, 3, dtype=torch.uint8)
    else:
        tensors["moments"] = torch.empty(samples, 2 * latent[1], *latent[2:], dtype=torch.float16)
    if task.fly_texts:
        clip = AutoConfig.from_pretrained(task.folder / CLIP, local_files_only=True).max_position_embeddings
        tensors["clip_ids"] = torch.empty(samples, clip, dtype=torch.int64)
        tensors["t5_ids"] = torch.empty(samples, task.options.text_tokens, dtype=torch.int64)
    else:
        tensors["prompt"], tensors["pooled"] = texts(task, samples)
    return tensors


def texts(task: FluxTask, samples: int) -> tuple[Tensor, Tensor]:
    """Stored embeddings of some prompts."""
    widths = task.config["joint_attention_dim"], task.config["pooled_projection_dim"]
    return (
        torch.empty(samples, task.options.text_tokens, widths[0], dtype=torch.float16),
        torch.empty(samples, widths[1], dtype=torch.float16),
    )
