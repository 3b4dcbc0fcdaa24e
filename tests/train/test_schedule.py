"""The rate of each step, by formula; and an end that may be moved as long as the rate is constant."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import checkpoint, differing, gan
from train_ranks import Ranks, train

from semiocity.errors import UserError
from semiocity.train.metrics import read_metrics
from semiocity.train.optimizer_options import OptimizerOptions
from semiocity.train.schedule import learning_rate, notes


def rates(steps: int, **options: Any) -> list[float]:
    made = OptimizerOptions(lr=2.0, **options)
    return [learning_rate(made, step, steps) for step in range(1, steps + 1)]


def test_a_warm_up_beyond_the_end_is_remarked_upon() -> None:
    """Not refused: a job that is tried for a few steps keeps its warm-up."""
    (said,) = notes(OptimizerOptions(lr=1e-3, warmup_steps=500), 20)
    assert said == (
        "optimizer.warmup_steps is 500, more than steps = 20: the rate ends at 4e-05 and never reaches lr = 0.001"
    )
    assert notes(OptimizerOptions(warmup_steps=20), 20) == []


def test_every_schedule_warms_up_and_ends_where_it_should() -> None:
    for schedule, more in (("cosine", {}), ("linear", {}), ("wsd", {"decay_steps": 20})):
        found = rates(110, warmup_steps=10, schedule=schedule, min_lr=0.5, **more)
        assert found[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
        assert found[-1] == pytest.approx(0.5)
        assert all(a >= b for a, b in itertools.pairwise(found[9:]))
    assert rates(110, warmup_steps=10)[9:] == [2.0] * 101


def test_formulas() -> None:
    cosine = rates(100, schedule="cosine", min_lr=0.5)
    assert cosine[24] == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi / 4)) / 2)
    linear = rates(100, schedule="linear", min_lr=0.5)
    assert linear[24] == pytest.approx(0.5 + 1.5 * 0.75)
    wsd = rates(100, schedule="wsd", decay_steps=40)
    assert wsd[:60] == [2.0] * 60
    assert wsd[69] == pytest.approx(2 * (1 - math.sqrt(0.25)))
    assert wsd[99] == 0


def test_a_run_may_be_made_longer_before_its_rate_falls(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    def settings(steps: int, decay: int) -> dict[str, Any]:
        optimizer = {"lr": 1e-2, "schedule": "wsd", "decay_steps": decay}
        made = gan({"stage": 1, "precision": "fp32"}, {"generator_every": 1}, steps=steps, checkpoint_every=1)
        return {**made, "optimizer": optimizer, "keep_last": 9}

    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert ranks.call(train, settings(8, 3), whole, city, 0, 0) == [True, True]
    assert ranks.call(train, settings(6, 2), moved, city, 0, 4) == [False, False]  # constant up to step 4
    assert ranks.call(train, settings(8, 3), moved, city, 0, 2) == [False, False]
    assert [line["maker/lr"] for line in read_metrics(moved / "metrics.jsonl")][-2] == 1e-2
    with pytest.raises(UserError, match=r"its rate falls from step 5 to 8, now .* from 7 to 9; .*before the rate"):
        ranks.call(train, settings(9, 2), moved, city, 0, 0)
    assert ranks.call(train, settings(8, 3), moved, city, 0, 0) == [True, True]
    assert differing(checkpoint(whole, 8), checkpoint(moved, 8)) == []
