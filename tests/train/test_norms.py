"""Norms that are shown are those of the weights and steps, under every ZeRO stage, from whatever each rank holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import gan, sdm
from train_ranks import Ranks, job_of, train

from semiocity.train.lines import read_metrics

STEPS = 3


def weights(run: Path, step: int, phase: str) -> dict[str, torch.Tensor]:
    """Master weights of a checkpoint, flat, put together from what each rank wrote and named."""
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for file in sorted((run / "checkpoints" / f"step-{step:08d}").glob(f"{phase}-*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name, start, length, part, offset in json.loads(opened.metadata()["about"])["fragments"]:
                master = opened.get_tensor(f"{part}/master").flatten()
                parts.setdefault(name, {})[start] = master[offset : offset + length]
    return {name: torch.cat([pieces[start] for start in sorted(pieces)]) for name, pieces in parts.items()}


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


@pytest.mark.parametrize(
    ("kind", "stage", "precision"), [("sdm", 1, "bf16"), ("sdm", 2, "bf16"), ("sdm", 3, "fp32"), ("gan", 0, "fp32")]
)
def test_norms_are_those_of_the_checkpoints(
    ranks: Ranks, city: Path, tmp_path: Path, kind: str, stage: int, precision: str
) -> None:
    make, phase = (sdm, "sdm") if kind == "sdm" else (gan, "maker")
    more: dict[str, Any] = {
        "steps": STEPS,
        "optimizer": {"lr": 1e-2},
        "checkpoint_every": 1,
        "keep_last": STEPS + 1,
        "sample_every": 0,
    }
    settings = make({"stage": stage, "precision": precision}, log_every=1, **more)
    ranks.call(train, settings, tmp_path, city, 0, 0)
    prefix = "" if kind == "sdm" else "maker/"
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    shown = [line for line in lines if f"{prefix}update_norm" in line]
    assert len(shown) >= (STEPS if kind == "sdm" else 1)
    for line in shown:
        step = line["step"]
        now = weights(tmp_path, step, phase)
        assert line[f"{prefix}parameter_norm"] == pytest.approx(norm(now), rel=1e-5)
        if step > 1:
            before = weights(tmp_path, step - 1, phase)
            moved = norm({name: now[name] - before[name] for name in now})
            assert moved > 0
            assert line[f"{prefix}update_norm"] == pytest.approx(moved, rel=1e-4)


def test_norms_come_with_the_log_and_not_between(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    ranks.call(train, gan({"stage": 0, "precision": "fp32"}, sample_every=0), tmp_path, city, 0, 0)
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line["step"] for line in lines if "judge/parameter_norm" in line] == [2, 4, 6]
    speeds = list(read_metrics(tmp_path / "speed.jsonl"))
    assert [line["step"] for line in speeds] == [2, 4, 6]
    assert all(line["speed/samples_per_s"] > 0 and 0 <= line["speed/data_wait_share"] <= 1 for line in speeds)


def test_of_large_shares_the_norm_of_a_step_is_estimated(lone_rank: Ranks, city: Path) -> None:
    exact, estimated = lone_rank.call(estimate, sdm({"stage": 2, "precision": "fp32"}), city)[0]
    assert estimated == pytest.approx(exact, rel=0.1)
    assert estimated != exact


def estimate(world: Any, settings: dict[str, Any], dataset: Path) -> tuple[float, float]:
    """The norm of one and the same step from all elements, and from about a seventh of them."""
    import tempfile

    from semiocity.train import zero
    from semiocity.train.loop import Trainer
    from semiocity.train.norms import Norms
    from semiocity.train.watchdog import Watchdog

    job = job_of(dataset, **settings)
    zero.start_deepspeed()
    with tempfile.TemporaryDirectory() as folder, Watchdog(world, job.hang) as watchdog:
        trainer = Trainer(job, Path(folder), dataset, world, torch.device("cpu"), {}, watchdog)
        (engine,) = trainer.engines
        held = sum(fragment.length for fragment in engine.fragments())
        part = next(iter(trainer.feed.slices(0, pin_memory=False)))
        exact, estimated = Norms(engine), Norms(engine, held // 7)
        trainer._step(part, False)
        found = exact.squares(1).update, estimated.squares(1).update
        trainer.close()
    return math.sqrt(found[0]), math.sqrt(found[1])
