"""Task `flux-full`: the transformer's own weights, all or chosen ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity.models import flux_names
from semiocity.train.options import TrainJob
from semiocity.train.tasks import flux_export
from semiocity.train.tasks.base import DatasetFacts, Phase, Tensors
from semiocity.train.tasks.flux import TRANSFORMER, FluxTask
from semiocity.train.tasks.flux_options import FluxFullOptions


class FluxFullTask(FluxTask):
    """One phase, one module."""

    options: FluxFullOptions

    def __init__(self, job: TrainJob, facts: DatasetFacts) -> None:
        super().__init__(job, facts)
        assert isinstance(self.options, FluxFullOptions)

    def phases(self) -> list[Phase]:
        model = self._transformer()
        trained = set(self.options.trained())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return [
            Phase(
                "flux",
                {TRANSFORMER: model},
                self.job.optimizer,
                self.job.zero,
                ema=self.options.average,
                group=self._group,
            )
        ]

    def _group(self, parameter: str) -> tuple[str, float]:
        """A group for each block, which caps the memory of fp32 gradients, and for each rate."""
        name = parameter.removeprefix(f"{TRANSFORMER}.")
        return flux_names.block_of(name), self.options.factor(name)

    def _trained(self) -> dict[str, Any]:
        return {"trained": self.options.trained()}

    def notes(self, rows: int) -> list[str]:
        trained, total = flux_names.count(self.config, self.options.trained()), flux_names.count(self.config)
        return [f"trains {trained:,} of {total:,} parameters of the transformer", *super().notes(rows)]

    def export(self, weights: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None:
        """A whole diffusers pipeline, `flux.safetensors` in the original layout, and the model card."""
        flux_export.full(self, weights[TRANSFORMER], folder, facts)
