"""The optimizers, as `optimizer.kind` names them. Each moves whatever DeepSpeed gives it: whole parameters at ZeRO
stage 0, at stages 1 to 3 a flat share of a parameter group. What goes together is told in `optimizer_options.KINDS`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from semiocity.errors import UserError
from semiocity.train.muon import Muon
from semiocity.train.optimizer_options import OptimizerOptions, ZeroOptions

CHUNK = 2**24
"""Elements that are computed in fp32 at a time; more would cost memory for nothing."""


def make(
    options: OptimizerOptions, zero: ZeroOptions, groups: list[dict[str, Any]], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of some parameter groups. Raises UserError when its package is not there."""
    betas: dict[str, Any] = {"betas": options.betas, "eps": options.eps}
    shared: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    match options.kind:
        case "adamw":
            # On the host torch's fused kernel takes the place of DeepSpeed's, which would have to be compiled.
            fused = device.type == "cuda" or zero.offload != "none" or None
            return torch.optim.AdamW(groups, **shared, **betas, fused=fused)
        case "adamw_8bit":
            return eight_bit()(groups, **shared, **betas)
        case "adamw_bf16":
            return AdamWBf16(groups, **shared, **betas)
        case "adafactor":
            return torch.optim.Adafactor(groups, **shared, eps=(None, 1e-3))
        case "muon":
            return Muon(groups, **shared, **betas, momentum=options.momentum)


def eight_bit() -> Any:
    """bitsandbytes' optimizer. Raises UserError when the package is not there."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            f'optimizer.kind = "adamw_8bit" needs bitsandbytes, which cannot be loaded here ({error}); install it, or '
            "take another optimizer"
        ) from None
    return AdamW8bit


class AdamWBf16(Optimizer):
    """AdamW whose weights and moments are bf16 and nothing else: 6 bytes a parameter instead of 16.

    A step is computed in fp32; its results are rounded up or down at random, so that on average nothing is lost of
    changes that are smaller than half a unit in the last place (Zamirai et al. 2020, arXiv 2010.06192). That counts for
    the second moment as much: with betas[1] = 0.999 it would never move if it was rounded to the nearest.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. The random bits are keyed by the number of the step alone, so a run that comes back draws the same;
        that different tensors share them does no harm."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                random = torch.Generator(p.device)
                random.manual_seed(int(state["step"]))
                flat = [t.view(-1) for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"])]
                for weights, gradient, first, second in zip(*(t.split(CHUNK) for t in flat)):
                    self._move(weights, gradient, first, second, group, float(state["step"]), random)

    @staticmethod
    def _move(
        p: Tensor, g: Tensor, first: Tensor, second: Tensor, group: dict[str, Any], step: float, random: torch.Generator
    ) -> None:
        beta1, beta2 = group["betas"]
        gradient, mean = g.float(), first.float()
        mean.lerp_(gradient, 1 - beta1)
        square = second.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weights = p.float().mul_(1 - group["lr"] * group["weight_decay"])
        size = square.div(1 - beta2**step).sqrt_().add_(group["eps"])
        weights.addcdiv_(mean, size, value=-group["lr"] / (1 - beta1**step))
        for kept, value in ((p, weights), (first, mean), (second, square)):
            round_stochastically(kept, value, random)


def round_stochastically(out: Tensor, value: Tensor, random: torch.Generator) -> None:
    """Write fp32 `value` into bf16 `out`: up or down, with the chance of either that makes the mean exact."""
    # bf16 is the upper half of fp32: adding 16 random bits carries into it as often as the lower half says.
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=random)
    bits = value.view(torch.int32).add_(noise).bitwise_and_(-(1 << 16))
    out.copy_(bits.view(torch.float32))
