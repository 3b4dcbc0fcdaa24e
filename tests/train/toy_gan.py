"""The tests' own task: a GAN with batch statistics, an R1 penalty in fp32 without ZeRO and frozen parts."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_gan_options import ToyGanOptions

from semiocity.data.loader import Arrays, Room, stack, to_bytes, to_unit
from semiocity.data.order import Batch
from semiocity.train.noise import normal
from semiocity.train.options import ZeroOptions
from semiocity.train.tasks.base import Loss, Modules, Phase, Task, Tensors

SIDE = 8


class ToyGan(Task):
    """Discriminator first, then the generator, as often as the options say."""

    @property
    def options(self) -> ToyGanOptions:
        options = self.job.options
        assert isinstance(options, ToyGanOptions)
        return options

    def phases(self) -> list[Phase]:
        # Torch has no batch norm with bf16 weights on CPUs.
        norm = nn.BatchNorm1d(16) if self.options.generator_zero.precision == "fp32" else nn.Identity()
        generator = nn.Sequential(
            nn.Linear(4, 16), norm, nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3 * SIDE * SIDE), nn.Tanh()
        )
        judge = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(72, 1))
        judge[0].bias.requires_grad_(False)
        fp32 = ZeroOptions(stage=0, precision="fp32")
        return [
            Phase("judge", {"judge": judge}, self.options.discriminator, fp32, ema=False),
            Phase(
                "maker",
                {"maker": generator},
                self.job.optimizer,
                self.options.generator_zero,
                every=self.options.generator_every,
            ),
        ]

    def frozen(self) -> Mapping[str, nn.Module]:
        return {"tint": nn.Conv2d(3, 3, 1)}

    def frozen_digests(self) -> Mapping[str, str]:
        return {"tint": "seeded"}

    def decode(self, row: Mapping[str, bytes | None], size: tuple[int, int], room: Room) -> Arrays:
        image = Image.open(io.BytesIO(row["image"] or b"")).convert("RGB").resize(size[::-1])
        return {"image": np.asarray(image)}

    def collate(self, batch: Batch, decoded: Sequence[Arrays]) -> Tensors:
        z = torch.from_numpy(normal(self.job.seed, batch.step, [int(r) for r in batch.rows], (4,), "train"))
        return {"image": stack(decoded, "image"), "z": z, "weight": torch.from_numpy(batch.weights)}

    def loss(self, phase: str, modules: Modules, batch: Tensors, step: int) -> Loss:
        weight, dtype = batch["weight"], next(modules["maker"].parameters()).dtype
        if phase == "maker":
            fake = modules["maker"](batch["z"].to(dtype)).float().view(-1, 3, SIDE, SIDE)
            losses = nn.functional.softplus(-modules["judge"](modules["tint"](fake))).flatten()
        else:
            assert not any(p.requires_grad for p in modules["maker"].parameters())
            real = to_unit(batch["image"]).requires_grad_()
            with torch.no_grad():
                fake = modules["maker"](batch["z"].to(dtype)).float().view(-1, 3, SIDE, SIDE)
            scores = modules["judge"](modules["tint"](real)).flatten()
            (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            losses = nn.functional.softplus(-scores) + slope.square().flatten(1).sum(1)
            losses = losses + nn.functional.softplus(modules["judge"](modules["tint"](fake))).flatten()
        if phase == self.options.poison_phase and self._poisoned(step):
            losses = losses + torch.inf
        losses = losses * weight
        return Loss(losses.mean(), {"loss": (losses.detach().sum(), float(len(losses)))})

    def _poisoned(self, step: int) -> bool:
        steps, file = self.options.poison_steps, self.options.poison_until_file
        if step not in steps or (file and Path(file).exists()):
            return False
        if file and step == steps[-1]:
            Path(file).touch()
        return True

    def sample(self, modules: Modules, batch: Tensors) -> Tensor:
        dtype = next(modules["maker"].parameters()).dtype
        made = modules["maker"](batch["z"].to(dtype)).float().view(-1, 3, SIDE, SIDE)
        return torch.cat([batch["image"], to_bytes(made)], dim=2)

    def export(self, weights: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None:
        state = {f"{module}.{name}": tensor for module, part in weights.items() for name, tensor in part.items()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
