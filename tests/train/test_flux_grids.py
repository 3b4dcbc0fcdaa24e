"""Image grids of Flux trainings: what the export paints, at every ZeRO stage, prompt by prompt; and trainings on aspect
buckets, whose rows have other numbers than the places of a grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from flux_data import SHAPES, cache, captioned_shapes, flux
from flux_pictures import distance, grid, painted
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_ranks import Ranks, job_of, train

from semiocity.data.aspects import first_of_bucket
from semiocity.data.columns import Dataset
from semiocity.data.loader import own_room
from semiocity.data.order import Batch
from semiocity.evaluate.flux_painter import load_pipeline
from semiocity.evaluate.prompt_options import Source
from semiocity.train.feed import ByRole
from semiocity.train.ledger import read_steps
from semiocity.train.metrics import read_metrics
from semiocity.train.options import load
from semiocity.train.tasks import TASKS
from semiocity.train.tasks.base import DatasetFacts

FLY = {"latents": "fly", "texts": "fly"}
SIZES = [(width, height) for width, height in SHAPES]
PROMPTS = ["a street", "a tree on the left", "the sky"]


@pytest.mark.parametrize(("task", "stage"), [("flux-lora", 1), ("flux-lora", 3), ("flux-full", 3)])
def test_a_grid_is_what_the_export_paints(
    ranks: Ranks, model: Path, town: Path, tmp_path: Path, task: str, stage: int
) -> None:
    """Adapters in all three parts, loaded by `semiocity generate`; or a whole pipeline, loaded by diffusers."""
    own: dict[str, Any] = {"sample_prompts": PROMPTS, "sample_guidance": 2.0}
    own |= {**FLY, "text_encoders": ["clip", "t5"]} if task == "flux-lora" else {}
    settings = flux(task, model, {"stage": stage, "precision": "fp32"}, own, steps=4, sample_every=4, sample_images=3)
    settings |= {"optimizer": {"lr": 3e-2 if task == "flux-lora" else 3e-3}}
    assert ranks.call(train, settings, tmp_path, town, 0, 0) == [True, True]
    found = grid(tmp_path)
    assert len(found) == 3
    made = tmp_path / "export"
    source = Source(model, lora=made / "lora.safetensors") if task == "flux-lora" else Source(made)
    pipeline, plain = load_pipeline(source, torch.float32), FluxPipeline.from_pretrained(model)
    for place, prompt in enumerate(PROMPTS):
        assert distance(found[place], painted(pipeline, prompt, place, steps=2, guidance=2.0)) <= 1
        assert distance(found[place], painted(plain, prompt, place, steps=2, guidance=2.0)) > 3, "it has learnt"
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["samples of the prompts"]


@pytest.fixture(scope="module")
def shapes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each of three shapes."""
    dataset = captioned_shapes(tmp_path_factory.mktemp("shapes") / "shapes", 24)
    return cache(dataset, model, buckets={"sizes": SHAPES}, flip=True)


def bucketed(model: Path, where: dict[str, Any]) -> dict[str, Any]:
    own = {**where, "sample_prompts": PROMPTS[:2], "sample_guidance": 2.0}
    settings = flux("flux-lora", model, {"stage": 2, "precision": "fp32"}, own, sample_every=6, sample_images=10)
    settings["data"] |= {"buckets": {"sizes": SHAPES}, "ledger": True}
    return settings


@pytest.mark.parametrize("where", [{}, FLY], ids=["cached", "fly"])
def test_buckets_train_and_grids_show_every_prompt_in_turn(
    ranks: Ranks, model: Path, shapes: Path, tmp_path: Path, where: dict[str, Any]
) -> None:
    """Though rows have other numbers than places, and the grids' bucket fewer rows than the grid has places."""
    assert ranks.call(train, bucketed(model, where), tmp_path, shapes, 0, 0) == [True, True]
    assert {lines[0]["bucket"] for _, lines in read_steps(tmp_path)} == {0, 1, 2}
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl"))
    pipeline = load_pipeline(Source(model, lora=tmp_path / "export" / "lora.safetensors"), torch.float32)
    found = grid(tmp_path)
    assert len(found) == 10
    for place, picture in enumerate(found):
        expected = painted(pipeline, PROMPTS[place % 2], place, steps=2, guidance=2.0)
        assert distance(picture, expected) <= (1 if where else 3), place  # prompts' embeddings go through fp16


def test_a_bucket_has_the_same_loss_cached_and_on_the_fly(model: Path, shapes: Path) -> None:
    """To the rounding of what is stored, in every shape."""
    losses: dict[str, list[float]] = {}
    for name, where in {"cached": {}, "fly": FLY}.items():
        job = job_of(shapes, **bucketed(model, where))
        task: Any = load(TASKS[job.task].task)(job, DatasetFacts("shapes", "", (), (), None))
        (phase,) = task.phases()
        modules = {**phase.modules, **task.frozen()}
        view = ByRole(Dataset.open(shapes).view(sorted(job.fields_by_role().values()), "train"), job.fields_by_role())
        losses[name] = []
        for bucket, (width, height) in enumerate(SHAPES):
            rows = first_of_bucket(Dataset.open(shapes).view(["base.image"], "train"), bucket, SIZES, 4)
            batch = Batch(0, np.array(rows), np.arange(4), np.ones(4, np.float32))
            tensors = task.collate(batch, [task.decode(view.read(row), (height, width), own_room) for row in rows])
            losses[name].append(task.loss("lora", modules, tensors, 0).total.item())
    assert losses["cached"] == pytest.approx(losses["fly"], rel=2e-3)
    assert losses["cached"] != losses["fly"]
