"""The learning rate of a step. Pure functions of the job; importable on a login node.

With n steps of warm-up, N altogether, d of decay, and rates r and r_min:

    step <= n    r·step/n
    constant     r
    cosine       r_min + (r - r_min)·(1 + cos(π·s))/2     s = (step - n)/(N - n)       Loshchilov, Hutter 2017
    linear       r_min + (r - r_min)·(1 - s)
    wsd          r until N - d, then r_min + (r - r_min)·(1 - √u),  u = (step - N + d)/d
                 Hu et al. 2024 (arXiv 2404.06395); 1 - √u: Hägele et al. 2024 (arXiv 2405.18392)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from semiocity.train.optimizer_options import OptimizerOptions


def learning_rate(options: OptimizerOptions, step: int, steps: int) -> float:
    """Rate of the step that makes `step` done (from 1), of `steps` altogether."""
    if step <= options.warmup_steps:
        return options.lr * step / options.warmup_steps
    share = min((step - options.warmup_steps) / max(steps - options.warmup_steps, 1), 1.0)
    match options.schedule:
        case "constant":
            return options.lr
        case "cosine":
            height = 0.5 * (1 + math.cos(math.pi * share))
        case "linear":
            height = 1 - share
        case "wsd":
            fallen = max(step - decay_begins(options, steps), 0) / options.decay_steps
            height = 1 - math.sqrt(min(fallen, 1.0))
    return options.min_lr + (options.lr - options.min_lr) * height


def decay_begins(options: OptimizerOptions, steps: int) -> int:
    """The last step of `wsd` at the full rate."""
    return steps - options.decay_steps


def end_is_open(options: OptimizerOptions) -> bool:
    """Whether the rate does not depend on `steps` as long as it is constant, so that a run may be made longer."""
    return options.schedule in ("constant", "wsd")


def check_steps(options: OptimizerOptions, steps: int) -> None:
    """ValueError unless warm-up and decay fit into the steps."""
    taken = options.warmup_steps + options.decay_steps
    if options.decay_steps and taken > steps:
        raise ValueError(
            f"optimizer: warmup_steps {options.warmup_steps} and decay_steps {options.decay_steps} are more than "
            f"steps = {steps}"
        )


def notes(options: OptimizerOptions, steps: int) -> list[str]:
    """What a submission says of a schedule that is odd, but right for a trial of a few steps."""
    if options.warmup_steps <= steps:
        return []
    reached = learning_rate(options, steps, steps)
    return [
        f"optimizer.warmup_steps is {options.warmup_steps}, more than steps = {steps}: the rate ends at {reached:.3g} "
        f"and never reaches lr = {options.lr:g}"
    ]


def end_of(options: OptimizerOptions, steps: int) -> dict[str, int]:
    """What a checkpoint must know of an end that may be moved; empty where none may."""
    if options.schedule != "wsd":
        return {}
    return {"steps": steps, "decay_begins": decay_begins(options, steps)}


def refuse_decayed(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str:
    """Why a checkpoint of `step` cannot go on under another end: its rate had begun to fall. "" if it can.

    `saved` and `now` are what `end_of` gave.
    """
    if saved == now or step <= min(saved["decay_begins"], now["decay_begins"]):
        return ""
    return (
        f"its rate falls from step {saved['decay_begins']} to {saved['steps']}, now it would from "
        f"{now['decay_begins']} to {now['steps']}; an end can be moved only before the rate falls. Set steps and "
        "optimizer.decay_steps back, or start another run with --set run=NAME"
    )
