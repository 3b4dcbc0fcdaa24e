"""Flux pipelines as painters: from prompts and image seeds to pictures, by diffusers' own `FluxPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

from semiocity.errors import UserError
from semiocity.evaluate import flux_lora, noise
from semiocity.evaluate.images import Pixels
from semiocity.evaluate.painter import deterministic
from semiocity.evaluate.prompt_options import Prompt, PromptJob, Source
from semiocity.models import flux, flux_layout, flux_names
from semiocity.stages import flux_parts, weights


class FluxPainter:
    """A pipeline on a device."""

    def __init__(self, source: Source, job: PromptJob, device: torch.device) -> None:
        self.job, self.device = job, device
        self.dtype = getattr(torch, job.dtype)
        self.pipeline = load_pipeline(source, self.dtype, job.lora_scale)
        self.pipeline.set_progress_bar_config(disable=True)
        if job.offload and device.type == "cuda":
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            self.pipeline.to(device)

    def paint(self, prompt: Prompt, seeds: Sequence[str]) -> Pixels:
        """Pictures [b, height, width, 3] of a prompt, each from the noise of its seed."""
        pipeline, factor = self.pipeline, self.pipeline.vae_scale_factor
        channels = pipeline.transformer.config.in_channels // flux.PATCH**2
        shape = (channels, prompt.height // factor, prompt.width // factor)
        start = torch.from_numpy(np.stack([noise.normal(seed, shape) for seed in seeds]))
        with deterministic():
            made = pipeline(
                prompt=[prompt.text] * len(seeds),
                negative_prompt=None if self.job.negative_prompt is None else [self.job.negative_prompt] * len(seeds),
                true_cfg_scale=self.job.true_guidance,
                height=prompt.height,
                width=prompt.width,
                num_inference_steps=self.job.steps,
                guidance_scale=self.job.guidance,
                latents=flux.pack(start).to(self.device, self.dtype),
                max_sequence_length=self.job.text_tokens,
                output_type="pt",
            ).images
        if not torch.isfinite(made).all():
            raise UserError(
                f"the model made values that are not finite in {self.job.dtype} for {prompt.text[:60]!r}; its training "
                'diverged, or another dtype is needed ("bfloat16" for Flux)'
            )
        return (made.float() * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def load_pipeline(source: Source, dtype: torch.dtype, lora_scale: float = 1.0) -> Any:
    """The pipeline of a source, from local folders, safetensors only."""
    loader: Any = FluxPipeline
    parts = {} if source.original is None else {"transformer": load_original(source.original, source.base, dtype)}
    pipeline = loader.from_pretrained(
        weights.resolve(source.base), local_files_only=True, use_safetensors=True, dtype=dtype, **parts
    )
    if source.lora is not None:
        flux_lora.load(pipeline, source.lora, lora_scale)
    return pipeline


def load_original(file: Path, base: Path, dtype: torch.dtype) -> Any:
    """A transformer in the original layout; its shape is that of the base's. UserError when it does not fit."""
    config = flux_parts.config(base, "transformer", "base")
    outputs = {name: shape[0] for name, shape in flux_names.linear_layers(config).items()}
    try:
        state = flux_layout.from_original(load_file(file), outputs)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"model: {file} does not fit base {base}: {error}") from None
    loader: Any = FluxTransformer2DModel
    with torch.device("meta"):
        model = loader.from_config(config)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    return model
