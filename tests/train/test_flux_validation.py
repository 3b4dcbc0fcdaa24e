"""The validation of Flux trainings: no drawn time, no dropped prompt, no mirrored picture, whatever the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flux_data import flux
from train_ranks import Ranks, job_of, train

from semiocity.train.lines import read_metrics
from semiocity.train.options import TrainJob, load
from semiocity.train.tasks import TASKS
from semiocity.train.tasks.base import DatasetFacts

FP32 = {"stage": 2, "precision": "fp32"}
VALIDATE = {"validate_every": 3, "validate_samples": 6, "validate_batch": 3}


def test_a_training_shows_it_and_stays_as_it_was(ranks: Ranks, model: Path, town: Path, tmp_path: Path) -> None:
    plain = flux("flux-lora", model, FP32, sample_every=0)
    ranks.call(train, plain, tmp_path / "plain", town, 0, 0)
    ranks.call(train, {**plain, **VALIDATE}, tmp_path / "seen", town, 0, 0)
    lines = list(read_metrics(tmp_path / "seen" / "validation.jsonl"))
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert {"loss", *(f"loss_by_t/quarter_{i}" for i in (1, 2, 3, 4))} < lines[0].keys()
    assert lines[2]["loss"] != lines[0]["loss"]
    assert (tmp_path / "plain/metrics.jsonl").read_text() == (tmp_path / "seen/metrics.jsonl").read_text()


def task_of(job: TrainJob) -> Any:
    return load(TASKS[job.task].task)(job, DatasetFacts("city", "", (), (), None))


@pytest.mark.parametrize("latents", ["column", "fly"])
def test_what_is_fixed(model: Path, town: Path, latents: str) -> None:
    import numpy as np

    from semiocity.data.columns import Dataset
    from semiocity.data.loader import own_room
    from semiocity.data.order import Batch
    from semiocity.train.feed import ByRole

    made = []
    for seed in (0, 7):
        job = job_of(town, **flux("flux-full", model, FP32, {"latents": latents}, seed=seed, **VALIDATE))
        task = task_of(job)
        view = ByRole(Dataset.open(town).view(sorted(job.fields_by_role().values()), "train"), job.fields_by_role())
        decoded = [task.decode(view.read(row), (32, 32), own_room) for row in (2, 5, 5)]
        batch = Batch(0, np.array([2, 5, 5]), np.arange(3), np.ones(3, np.float32))
        shares = (np.arange(3) + 0.5) / 3
        made.append(task.collate_fixed(batch, decoded, shares))
        drawn = task.collate(batch, decoded)
        assert drawn.keys() == made[-1].keys()
        assert all(drawn[name].shape == made[-1][name].shape for name in drawn)
        assert all(drawn[name].dtype == made[-1][name].dtype for name in drawn)
    one, other = made
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["share"].tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert not one["drop"].any()
    assert not torch.equal(one["noise"][1], one["noise"][2]), "a row that comes twice has other noise"
