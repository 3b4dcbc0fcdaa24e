"""What the loop computes under DeepSpeed is what plain torch computes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import SDM, STEPS, checkpoint, gan, sdm
from train_ranks import Ranks, job_of, settle_statistics, train

from semiocity.data.columns import Dataset
from semiocity.data.loader import Rows
from semiocity.data.order import Order
from semiocity.train.batch_statistics import BatchStatistics
from semiocity.train.ema import decay_at
from semiocity.train.feed import ByRole
from semiocity.train.metrics import read_metrics
from semiocity.train.options import EmaOptions, OptimizerOptions
from semiocity.train.schedule import learning_rate
from semiocity.train.tasks.base import DatasetFacts
from semiocity.train.tasks.sdm import SDMTask, load_export


def plain_torch(dataset: Path, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training without DeepSpeed, ranks, accumulation and loop. Returns weights and losses."""
    job = job_of(dataset, **settings)
    data = Dataset.open(dataset)
    fields = job.fields_by_role()
    view = data.view(sorted(fields.values()), "train")
    order = Order(view.digest, tuple(view.shard_sizes), job.seed, job.global_batch, job.data.window, job.data.tail)
    torch.manual_seed(job.seed)
    facts = DatasetFacts(
        data.name, data.digest, tuple(c.name for c in data.classes), tuple(data.palette), data.ignore_id
    )
    task = SDMTask(job, facts)
    (phase,) = task.phases()
    rows = Rows(ByRole(view, fields), task.decode)
    options = job.optimizer
    optimizer = torch.optim.AdamW(
        phase.modules["sdm"].parameters(),
        lr=1.0,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
    )
    losses = []
    for step in range(job.steps):
        batch = order.batch(step)
        tensors = task.collate(batch, [rows.row(int(row), job.data.height_width).arrays for row in batch.rows])
        loss = task.loss("sdm", phase.modules, tensors, step).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(phase.modules["sdm"].parameters(), options.clip or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step + 1, job.steps)
        optimizer.step()
        losses.append(loss.item())
    return dict(phase.modules["sdm"].state_dict()), losses


@pytest.mark.parametrize("stage", [0, 2])
def test_two_ranks_under_zero_are_plain_adamw(ranks: Ranks, city: Path, tmp_path: Path, stage: int) -> None:
    settings = sdm(
        {"stage": stage, "precision": "fp32"},
        model={**SDM, "dropout": 0.0, "stratified_t": True},
        optimizer={"lr": 1e-2, "eps": 1e-2, "weight_decay": 0.1, "clip": 0.5, "warmup_steps": 2, "schedule": "cosine"},
        ema={"decay": 0.0, "warmup": False},
    )
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    expected, losses = plain_torch(city, settings)
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == pytest.approx(losses, rel=1e-4)
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert exported.keys() == expected.keys()
    moved = 0.0
    for name, tensor in expected.items():
        # A large eps keeps Adam from blowing rounding up where gradients vanish.
        torch.testing.assert_close(exported[name], tensor, rtol=1e-4, atol=1e-5)
        moved = max(moved, float(tensor.abs().max()))
    assert moved > 0.01


def test_average_is_the_stated_one(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    options = EmaOptions(decay=0.4)
    settings = sdm(
        {"stage": 2, "precision": "bf16"}, ema={"decay": 0.4}, checkpoint_every=1, keep_last=STEPS, sample_every=2
    )
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    for rank in range(2):
        states = [checkpoint(tmp_path, step)[f"sdm-0000{rank}.safetensors"] for step in range(1, STEPS + 1)]
        average = states[0]["0/ema"].double()
        for updates, state in enumerate(states[1:], 1):
            decay = min(0.4, (1 + updates) / (10 + updates))
            assert decay == decay_at(options, updates)
            average = decay * average + (1 - decay) * state["0/master"].double()
            torch.testing.assert_close(state["0/ema"].double(), average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_export_is_the_average_of_all_ranks(ranks: Ranks, city: Path, tmp_path: Path, stage: int) -> None:
    settings = sdm({"stage": stage, "precision": "bf16"}, steps=2, sample_every=0)
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    exported = load_file(tmp_path / "export" / "model.safetensors")
    kept = torch.cat([t["0/ema"] for _, t in sorted(checkpoint(tmp_path, 2).items())]).double()
    # The shards hold every element of every parameter, and padding of zeros.
    assert sum(t.double().square().sum() for t in exported.values()) == pytest.approx(float(kept.square().sum()))
    assert sum(t.numel() for t in exported.values()) <= kept.numel()
    model, meta = load_export(tmp_path / "export")
    assert meta["step"] == 2
    assert torch.equal(model.stem.weight, exported["stem.weight"])


def test_samples_and_checkpoints_leave_no_trace(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    """Making image grids from averaged weights and saving must not touch the training."""
    quiet, busy = tmp_path / "quiet", tmp_path / "busy"
    zero = {"stage": 2, "precision": "bf16"}
    assert ranks.call(train, sdm(zero, sample_every=0, checkpoint_every=99), quiet, city, 0, 0) == [True, True]
    assert ranks.call(train, sdm(zero, sample_every=1, checkpoint_every=1), busy, city, 0, 0) == [True, True]
    assert (quiet / "metrics.jsonl").read_text() == (busy / "metrics.jsonl").read_text()
    assert len(list((busy / "grids").glob("*.png"))) == STEPS


def test_phases_run_as_often_as_they_say(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan({"stage": 1, "precision": "fp32"}, {"generator_every": 3})
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert ["maker/loss" in line for line in lines] == [True, False, False, True, False, False]
    assert all("judge/loss" in line for line in lines)
    state = checkpoint(tmp_path)
    assert float(state["maker-00000.safetensors"]["0/step"]) == 2
    assert float(state["judge-00000.safetensors"]["0/step"]) == 6
    # The frozen bias is not trained, not averaged, not copied; statistics are kept once.
    names = set(load_file(tmp_path / "export" / "model.safetensors"))
    assert "judge.0.bias" not in names
    assert {"maker.1.running_mean", "judge.1.running_var"} <= names


def test_batch_statistics_are_the_mean_over_the_ranks(ranks: Ranks) -> None:
    # Momentum 0.1 of the means (0, 0) and (10, 2).
    assert ranks.call(settle_statistics) == [pytest.approx([0.5, 0.1])] * 2


def test_a_refused_step_leaves_batch_statistics() -> None:
    norm = torch.nn.BatchNorm1d(2)
    statistics = BatchStatistics({"norm": norm})
    statistics.remember()
    norm(torch.full((4, 2), torch.nan))
    assert norm.running_mean is not None
    assert norm.running_mean.isnan().all()
    statistics.settle(applied=False)
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.num_batches_tracked == 0


def test_learning_rate() -> None:
    cosine = OptimizerOptions(lr=2.0, warmup_steps=10, schedule="cosine")
    assert [learning_rate(cosine, step, 110) for step in (1, 5, 10)] == pytest.approx([0.2, 1.0, 2.0])
    assert learning_rate(cosine, 60, 110) == pytest.approx(1.0)
    assert learning_rate(cosine, 110, 110) == pytest.approx(0.0)
    constant = OptimizerOptions(lr=2.0)
    assert [learning_rate(constant, step, 10) for step in (1, 10)] == [2.0, 2.0]
