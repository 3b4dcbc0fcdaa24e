"""A run that was stopped goes on bit by bit: weights, master weights, moments, averages, statistics and losses."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_ranks import Ranks, pick, train

STEPS = 9
SDM = {
    "channels": 8,
    "mult": [1, 2],
    "attention_resolutions": [8],
    "head_channels": 8,
    "spade_hidden": 4,
    "res_blocks": 1,
    "dropout": 0.1,
    "label_dropout": 0.3,
    "edges": True,
    "sample_steps": 2,
}
SEED = 20
CASES = [
    *(("sdm", {"stage": stage, "precision": "bf16"}) for stage in (1, 2, 3)),
    *(("sdm", {"stage": stage, "precision": "fp32"}) for stage in (0, 1, 2, 3)),
    *(("toy_gan", {"stage": stage, "precision": "fp32"}) for stage in (0, 1, 2)),
]


def settings_of(task: str, zero: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tiny training of either task."""
    common = {
        "task": task,
        "steps": STEPS,
        "global_batch": 8,
        "accumulation": 2,
        "checkpoint_every": 4,
        "sample_every": 3,
        "sample_images": 3,
        "log_every": 2,
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "schedule": "cosine"},
        "ema": {"decay": 0.9},
        "data": {"size": 16 if task == "sdm" else 8, "flip": True, "tail": "pad", "window": 2, "cache_mb": 1},
    }
    own = {"model": SDM, "zero": zero} if task == "sdm" else {"model": {"generator_zero": zero, "generator_every": 2}}
    return {**common, **own, **more}


def final_state(run: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint, by file."""
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    return {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def differing(one: Any, other: Any, at: str = "") -> list[str]:
    """Places at which two nested states differ in a bit."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [at]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{at}: keys"]
        return [place for key in one for place in differing(one[key], other[key], f"{at}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{at}: length"]
        return [place for i, (a, b) in enumerate(zip(one, other)) for place in differing(a, b, f"{at}/{i}")]
    return [] if isinstance(one, int | float | str | bool) and one == other else [at] if _plain(one) else []


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool)


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("task", "zero"), CASES, ids=[f"{t}-{z['stage']}-{z['precision']}" for t, z in CASES])
def test_stopped_run_is_bit_identical(
    ranks: Ranks, city: Path, tmp_path: Path, task: str, zero: dict[str, Any]
) -> None:
    settings = settings_of(task, zero)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert ranks.call(train, settings, whole, city, 0, 0) == [True, True]

    seed = random.SystemRandom().randrange(10**6)
    (at,) = pick(seed, 1, list(range(1, STEPS)))
    print(f"rank 1 is asked to stop in step {at}")
    assert ranks.call(train, settings, halves, city, 1, at) == [False, False]
    assert not (halves / "export").exists()
    assert ranks.call(train, settings, halves, city, 0, 0) == [True, True]

    attempts = history(halves)
    assert len(attempts) == 2
    assert attempts[1]["first_step"] == at > 0
    states = final_state(whole)
    assert len(states) >= 3
    assert differing(states, final_state(halves)) == []
    assert (whole / "metrics.jsonl").read_text() == (halves / "metrics.jsonl").read_text()
    exports = [load_file(run / "export" / "model.safetensors") for run in (whole, halves)]
    assert exports[0]
    assert differing(*exports) == []
