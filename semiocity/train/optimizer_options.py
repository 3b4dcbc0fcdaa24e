"""What a job says of its optimizer, its schedule and ZeRO, and which of them go together. Pydantic only.

docs/optimizers.md has the table for users; `KINDS` is its source.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from semiocity.config import Strict

OptimizerKind = Literal["adamw", "adamw_8bit", "adamw_bf16", "adafactor", "muon"]
Schedule = Literal["constant", "cosine", "linear", "wsd"]


class Kind(NamedTuple):
    """What an optimizer can do."""

    stages: tuple[int, ...]
    """ZeRO stages."""
    why: str
    """Why not the others."""
    elastic: str
    """Why its state cannot be divided among another number of ranks; "" if it can."""
    state_bytes: float
    """Bytes of state a parameter, beside weights and master weights."""


KINDS: dict[OptimizerKind, Kind] = {
    "adamw": Kind((0, 1, 2, 3), "", "", 8.0),
    "adamw_8bit": Kind(
        (0, 1, 2, 3),
        "",
        "its moments are quantised in blocks of 256 elements of a rank's share, and other shares have other blocks",
        2.03,
    ),
    "adamw_bf16": Kind((2, 3), "at stages 0 and 1 DeepSpeed has no weights without fp32 master weights", "", 4.0),
    "adafactor": Kind(
        (0,),
        "it keeps the mean square of each row and column of a matrix, and at stages 1 to 3 DeepSpeed cuts matrices up "
        "into flat shares",
        "",
        0.01,
    ),
    "muon": Kind((0, 1, 2, 3), "", "", 4.0),
}


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerOptions(Strict):
    """The optimizer and the schedule of its rate."""

    kind: OptimizerKind = "adamw"
    """adamw; adamw_8bit: moments in 8 bits (bitsandbytes); adamw_bf16: weights and moments in bf16 alone, rounded
    stochastically; adafactor: factored second moment; muon: orthogonal steps for the matrices of repeated layers, AdamW
    for the rest. See docs/optimizers.md."""
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Of AdamW's moments; Adafactor has none."""
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """Added to the root of AdamW's second moment; Adafactor has its own."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; "none" does not clip."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the rate rises linearly from 0."""
    schedule: Schedule = "constant"
    """After the warm-up: constant; half a cosine, or a line, down to `min_lr` at the last step; or wsd: constant until
    the last `decay_steps`, then 1 - sqrt down to `min_lr`. Formulas: semiocity.train.schedule."""
    decay_steps: int = Field(0, ge=0)
    """Steps at the end in which `wsd` lowers the rate."""
    min_lr: float = Field(0.0, ge=0)
    """Rate of the last step, of schedules that fall."""

    @field_validator("clip", mode="before")
    @classmethod
    def _none_in_toml(cls, clip: Any) -> Any:
        """TOML has no None."""
        return None if clip == "none" else clip

    @model_validator(mode="after")
    def _says_only_what_counts(self) -> OptimizerOptions:
        fields = type(self).model_fields
        idle = {
            "betas": self.kind == "adafactor" and "adafactor has no betas",
            "eps": self.kind == "adafactor" and "adafactor has its own, 1e-3 of a weight's size",
            "momentum": self.kind != "muon" and f"{self.kind} has no momentum; only muon has",
            "min_lr": self.schedule == "constant" and 'schedule = "constant" does not fall',
            "decay_steps": self.schedule != "wsd" and f'only schedule = "wsd" has them, this is "{self.schedule}"',
        }
        for name, why in idle.items():
            if why and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} would not be used: {why}; leave it out")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr:g}) must not be above lr ({self.lr:g})")
        if self.schedule == "wsd" and self.decay_steps == 0:
            raise ValueError('schedule = "wsd" wants decay_steps; a tenth to a fifth of all steps is usual')
        return self


class ZeroOptions(Strict):
    """How weights, gradients and optimizer states are kept on the ranks."""

    stage: Literal[0, 1, 2, 3] = 2
    """0: every rank keeps everything (fp32 only). 1: optimizer states divided; 2: gradients too; 3: weights too."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of weights and computation. Master weights, moments and gradient sums are fp32, but for what `optimizer.kind`
    says."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep master weights and optimizer state in the host's memory, which moves them, too; or, at stage 3, the
    parameters as well, which are fetched for each layer."""

    @model_validator(mode="after")
    def _consistent(self) -> ZeroOptions:
        if self.stage == 0 and self.precision != "fp32":
            raise ValueError('stage 0 keeps no master weights, so precision must be "fp32"; for bf16 take stage 1 to 3')
        if self.offload != "none" and self.stage < 2:
            raise ValueError(f'offload = "{self.offload}" needs stage 2 or 3, this is stage {self.stage}')
        if self.offload == "parameters" and self.stage != 3:
            raise ValueError('offload = "parameters" needs stage 3: at stage 2 every GPU keeps all of them')
        return self


def refuse_pair(optimizer: OptimizerOptions, zero: ZeroOptions, accumulation: int) -> None:
    """ValueError unless this optimizer works, and resumes exactly, under these settings."""
    kind = KINDS[optimizer.kind]
    if zero.stage not in kind.stages:
        stages = " or ".join(map(str, kind.stages))
        raise ValueError(
            f'optimizer.kind = "{optimizer.kind}" does not work at zero.stage {zero.stage}: {kind.why}. Take stage '
            f"{stages}" + (' with zero.precision = "fp32"' if kind.stages == (0,) else "") + ", or another optimizer"
        )
    if optimizer.kind == "adamw_bf16" and zero.precision != "bf16":
        raise ValueError('optimizer.kind = "adamw_bf16" keeps weights in bf16: zero.precision must be "bf16"')
    if zero.offload != "none":
        if optimizer.kind != "adamw":
            raise ValueError(
                f'zero.offload: only optimizer.kind = "adamw" can move its state on the host, not "{optimizer.kind}"'
            )
        if zero.stage == 2 and zero.precision == "bf16" and accumulation > 1:
            raise ValueError(
                f"zero.offload at stage 2 would add up the gradients of accumulation = {accumulation} parts in bf16; "
                "take accumulation = 1 or zero.stage = 3"
            )


def refuse_other_ranks(kind: OptimizerKind, then: tuple[int, int], now: tuple[int, int]) -> str:
    """Why a state of this optimizer cannot go on: (ranks, ZeRO stage) then and now. "" if it can."""
    if then == now or then[1] == now[1] == 0 or not (why := KINDS[kind].elastic):
        return ""
    return (
        f'optimizer.kind = "{kind}" cannot go on with {now[0]} ranks at zero.stage {now[1]} from {then[0]} ranks at '
        f"stage {then[1]}: {why}. Go on as before, or start another run with --set run=NAME"
    )
