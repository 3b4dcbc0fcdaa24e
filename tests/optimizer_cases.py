"""The matrix that has to come back bit by bit: every optimizer at every ZeRO stage and precision that it works at."""

from __future__ import annotations

from semiocity.train.optimizer_options import KINDS

Case = tuple[str, int, str, str]
"""Kind of optimizer, stage, precision, offload."""

CASES: list[Case] = [
    (kind, stage, precision, "none")
    for kind, facts in KINDS.items()
    for stage in facts.stages
    for precision in ("fp32", "bf16")
    if not (stage == 0 and precision == "bf16") and not (kind == "adamw_bf16" and precision == "fp32")
]
OFFLOADED: list[Case] = [("adamw", stage, precision, "optimizer") for stage in (2, 3) for precision in ("fp32", "bf16")]
OFFLOADED += [("adamw", 3, precision, "parameters") for precision in ("fp32", "bf16")]
