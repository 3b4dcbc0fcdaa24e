"""Task `flux-lora`: low-rank adapters beside frozen weights, by peft."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from semiocity.models import flux_names
from semiocity.models.float8 import store_blocks
from semiocity.stages.text_encoders import CLIP, T5
from semiocity.train.options import TrainJob
from semiocity.train.tasks import flux_export
from semiocity.train.tasks.base import DatasetFacts, Phase, Tensors
from semiocity.train.tasks.flux import TRANSFORMER, FluxTask
from semiocity.train.tasks.flux_options import FluxLoraOptions

PARTS = {"clip": CLIP, "t5": T5}
ATTENTION = {CLIP: ("q_proj", "k_proj", "v_proj", "out_proj"), T5: ("q", "k", "v", "o")}
"""Layers of the text encoders that get adapters."""


class FluxLoraTask(FluxTask):
    """One phase with the transformer, and the text encoders that are trained; their own weights stay frozen."""

    options: FluxLoraOptions

    def __init__(self, job: TrainJob, facts: DatasetFacts) -> None:
        super().__init__(job, facts)
        assert isinstance(self.options, FluxLoraOptions)

    @property
    def trained_parts(self) -> tuple[str, ...]:
        return (TRANSFORMER, *(PARTS[name] for name in self.options.text_encoders))

    @property
    def alpha(self) -> float:
        return float(self.options.alpha or self.options.rank)

    def phases(self) -> list[Phase]:
        adapted = self._adapted(self._transformer(), self.options.layers())
        if self.options.base_dtype == "float8_e4m3":
            store_blocks(adapted)
        modules: dict[str, nn.Module] = {TRANSFORMER: adapted}
        for part in self.trained_parts[1:]:
            encoder = self._encoder(part)
            linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
            modules[part] = self._adapted(encoder, flux_names.targets(linear, ATTENTION[part]))
        return [Phase("lora", modules, self.job.optimizer, self.job.zero, ema=self.options.average)]

    def _adapted(self, model: nn.Module, layers: list[str]) -> nn.Module:
        """The model with an adapter at each of the layers; only the adapters take gradients."""
        config = LoraConfig(
            r=self.options.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float does as well
            lora_dropout=self.options.dropout,
            # As a pattern, since peft takes names in a list for endings.
            target_modules="|".join(re.escape(name) for name in layers),
        )
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # T5 has some of its own, which is not for frozen weights
                module.p = 0.0
        model = inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        return model

    def _trained(self) -> dict[str, Any]:
        return {"adapters": self.options.layers(), "rank": self.options.rank}

    def notes(self, rows: int) -> list[str]:
        shapes, layers = flux_names.linear_layers(self.config), self.options.layers()
        trained = sum(sum(shapes[name]) * self.options.rank for name in layers)
        return [
            f"adapters of rank {self.options.rank} at {len(layers)} layers: {trained:,} parameters",
            *super().notes(rows),
        ]

    def export(self, weights: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None:
        """`lora.safetensors` for diffusers, `lora-comfyui.safetensors`, and the model card."""
        flux_export.lora(self, weights, folder, facts)
