"""A run that was stopped goes on bit by bit: weights, master weights, moments, averages, statistics and losses."""

import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import STEPS, checkpoint, differing, gan, history, sdm
from train_ranks import Ranks, train

from semiocity.errors import UserError

ALWAYS = [("sdm", 2, "bf16"), ("gan", 2, "fp32")]
OTHERS = [
    *(("sdm", stage, "bf16") for stage in (1, 3)),
    *(("sdm", stage, "fp32") for stage in (0, 1, 2, 3)),
    *(("gan", stage, "fp32") for stage in (0, 1)),
]


def settings_of(case: tuple[str, int, str]) -> dict[str, Any]:
    kind, stage, precision = case
    return (sdm if kind == "sdm" else gan)({"stage": stage, "precision": precision})


def check_resume(ranks: Ranks, city: Path, folder: Path, case: tuple[str, int, str], stop_at: int) -> None:
    """Train undisturbed, and with a stop in the middle; nothing may differ."""
    print(f"{case}: rank 1 is asked to stop in step {stop_at}")
    whole, halves = folder / "whole", folder / "halves"
    assert ranks.call(train, settings_of(case), whole, city, 0, 0) == [True, True]
    assert ranks.call(train, settings_of(case), halves, city, 1, stop_at) == [False, False]
    assert not (halves / "export").exists()
    assert ranks.call(train, settings_of(case), halves, city, 0, 0) == [True, True]

    attempts = history(halves)
    assert len(attempts) == 2
    assert attempts[1]["first_step"] == stop_at > 0
    states = checkpoint(whole)
    assert len(states) >= 2
    assert differing(states, checkpoint(halves)) == []
    assert (whole / "metrics.jsonl").read_text() == (halves / "metrics.jsonl").read_text()
    one, other = (load_file(run / "export" / "model.safetensors") for run in (whole, halves))
    assert one
    assert differing(one, other) == []


@pytest.mark.parametrize("case", ALWAYS, ids=str)
def test_stopped_run_is_bit_identical(
    ranks: Ranks, city: Path, tmp_path: Path, case: tuple[str, int, str], chance: random.Random
) -> None:
    check_resume(ranks, city, tmp_path, case, chance.randrange(1, STEPS))


def test_stopped_run_is_bit_identical_sampled(ranks: Ranks, city: Path, tmp_path: Path, chance: random.Random) -> None:
    for i, case in enumerate(chance.sample(OTHERS, 2)):
        check_resume(ranks, city, tmp_path / str(i), case, chance.randrange(1, STEPS))


@pytest.mark.soak
@pytest.mark.parametrize("case", ALWAYS + OTHERS, ids=str)
def test_stopped_at_any_step(ranks: Ranks, city: Path, tmp_path: Path, case: tuple[str, int, str]) -> None:
    for stop_at in range(1, STEPS):
        check_resume(ranks, city, tmp_path / str(stop_at), case, stop_at)


def test_finished_run_is_left_alone(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan({"stage": 0, "precision": "fp32"})
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 7}, "seed was 0"),
        ({"optimizer": {"lr": 1e-2, "warmup_steps": 3, "schedule": "cosine"}}, "optimizer.warmup_steps was 2"),
        ({"steps": STEPS + 1}, "steps was 6"),
        ({"data": {"size": 8, "flip": True, "tail": "drop", "window": 2}}, "data.tail was 'pad'"),
    ],
)
def test_other_settings_are_refused(
    ranks: Ranks, city: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    settings = gan({"stage": 0, "precision": "fp32"})
    assert ranks.call(train, settings, tmp_path, city, 0, 2) == [False, False]
    with pytest.raises(UserError, match=named):
        ranks.call(train, {**settings, **change}, tmp_path, city, 0, 0)


def test_other_dataset_is_refused(ranks: Ranks, city: Path, other_city: Path, tmp_path: Path) -> None:
    settings = gan({"stage": 0, "precision": "fp32"})
    assert ranks.call(train, settings, tmp_path, city, 0, 2) == [False, False]
    with pytest.raises(UserError, match="order of samples is another one now"):
        ranks.call(train, settings, tmp_path, other_city, 0, 0)


def test_zero_3_leaves_nothing_behind_in_the_process(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    """DeepSpeed replaces torch's linear layer at stage 3; whatever is trained afterwards must not round otherwise."""
    fp32 = gan({"stage": 1, "precision": "fp32"})
    ranks.call(train, fp32, tmp_path / "before", city, 0, 0)
    ranks.call(train, sdm({"stage": 3, "precision": "fp32"}, steps=1), tmp_path / "between", city, 0, 0)
    ranks.call(train, fp32, tmp_path / "after", city, 0, 0)
    assert differing(checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after")) == []
