"""A training that goes on with another number of ranks: every sample once, and losses as if it had been left alone."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import SDM, STEPS, history, sdm
from train_ranks import Ranks, train

from semiocity.train import ledger
from semiocity.train.metrics import read_metrics

ELASTIC = ("adamw", "muon")
"""Optimizers whose state is divided anew in fp32; those of bf16 draw other rounding noise."""


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Ranks]:
    made = Ranks(4)
    yield made
    made.close()


def settings_of(kind: str, stage: int, precision: str = "fp32") -> dict[str, Any]:
    """Without dropout, which is keyed by rank; a large eps keeps Adam from blowing rounding up."""
    optimizer = {"kind": kind, "lr": 1e-3 if kind == "muon" else 1e-2, "eps": 1e-2, "schedule": "linear"}
    data = {"size": 16, "flip": True, "tail": "pad", "window": 2, "ledger": True}
    zero = {"stage": stage, "precision": precision}
    return sdm(zero, optimizer=optimizer, model={**SDM, "dropout": 0.0}, data=data, sample_every=0)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


def check_moved(
    groups: list[Ranks], stops: list[int], city: Path, folder: Path, settings: dict[str, Any], near: float
) -> None:
    """Undisturbed on the first group; and on one group after the other, stopped after `stops`."""
    whole, moved = folder / "whole", folder / "moved"
    assert all(groups[0].call(train, settings, whole, city, 0, 0))
    done = 0
    for group, stop in zip(groups, [*stops, 0]):
        assert set(group.call(train, settings, moved, city, 0, max(stop - done, 0))) == {stop == 0}
        done = stop
    assert [a["ranks"] for a in history(moved)] == [len(group.pipes) for group in groups]
    assert [a["first_step"] for a in history(moved)] == [0, *stops]
    assert losses(moved) == pytest.approx(losses(whole), rel=near)
    found = ledger.check(moved)
    assert found.ok, found.faults
    assert found.steps == STEPS

    def keys(run: Path) -> list[tuple[int, list[str]]]:
        return [(step, [key for line in lines for key in line["keys"]]) for step, lines in ledger.read_steps(run)]

    assert keys(moved) == keys(whole)


def test_two_ranks_one_and_two_again(
    ranks: Ranks, lone_rank: Ranks, city: Path, tmp_path: Path, chance: random.Random
) -> None:
    kind, stage = chance.choice(ELASTIC), chance.choice([1, 2, 3])
    stops = sorted(chance.sample(range(1, STEPS), 2))
    print(f"{kind} at stage {stage}, stopped after {stops}")
    check_moved([ranks, lone_rank, ranks], stops, city, tmp_path, settings_of(kind, stage), 1e-3)


def test_bf16_weights_are_carried_over(ranks: Ranks, lone_rank: Ranks, city: Path, tmp_path: Path) -> None:
    check_moved([ranks, lone_rank], [4], city, tmp_path, settings_of("adamw_bf16", 2, "bf16"), 0.05)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ELASTIC)
def test_two_ranks_one_and_four(
    ranks: Ranks, lone_rank: Ranks, four_ranks: Ranks, city: Path, tmp_path: Path, kind: str, stage: int
) -> None:
    for first in range(1, STEPS - 1):
        stops = [first, random.Random(first).randrange(first + 1, STEPS)]
        check_moved([ranks, lone_rank, four_ranks], stops, city, tmp_path / str(first), settings_of(kind, stage), 1e-3)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["adafactor", "adamw_8bit"])
def test_whole_parameters_go_on_with_any_number(
    ranks: Ranks, lone_rank: Ranks, four_ranks: Ranks, city: Path, tmp_path: Path, kind: str
) -> None:
    """Stage 0: every rank has everything, so nothing is divided."""
    settings = settings_of(kind, 0)
    if kind == "adafactor":
        settings["optimizer"] = {"kind": kind, "lr": 1e-2}
    check_moved([ranks, lone_rank, four_ranks], [2, 4], city, tmp_path, settings, 1e-3)
