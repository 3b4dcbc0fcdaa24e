"""What `semiocity fit` says of Flux, held against the allocator: two ranks train, and every allocation is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flux_data import captioned_city
from tiny_flux import TOKENS, save_flux
from train_ranks import Ranks, job_of

from semiocity.launch import fit
from semiocity.train.footprint import footprint
from semiocity.train.tasks.base import DatasetFacts

BUCKET = 100_000
"""Elements; small beside the model, as DeepSpeed's is beside FLUX.1."""
NO_FACTS = DatasetFacts("", "", (), (), None)


@pytest.fixture
def fresh() -> Iterator[Ranks]:
    """Two ranks that hold nothing of other tests: they would let go of it while bytes are counted."""
    made = Ranks()
    yield made
    made.close()


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned_city(tmp_path_factory.mktemp("data") / "city", 8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Blocks -> a pipeline with so many, wide enough that activations and weights are alike in size."""
    folder = tmp_path_factory.mktemp("models")
    return {n: save_flux(folder / str(n), blocks=(n // 3, n - n // 3), heads=8) for n in (6, 12)}


CASES: list[Any] = [
    pytest.param(task, blocks, recompute, stage, accumulation, marks=() if daily else pytest.mark.soak)
    for task, blocks, recompute, stage, accumulation, daily in (
        ("flux-lora", 6, 0, 2, 1, True),
        ("flux-lora", 12, "all", 2, 1, True),
        ("flux-full", 6, "all", 2, 2, True),
        ("flux-lora", 6, "all", 2, 1, False),
        ("flux-lora", 12, 0, 2, 2, False),
        ("flux-full", 6, 0, 2, 1, False),
        ("flux-full", 12, 0, 2, 2, False),
        ("flux-full", 12, "all", 2, 1, False),
        ("flux-full", 6, 0, 3, 1, False),
        ("flux-full", 12, "all", 3, 1, False),
    )
]


@pytest.mark.parametrize(("task", "blocks", "recompute", "stage", "accumulation"), CASES)
def test_bytes_of_a_step_agree_with_the_allocator(
    fresh: Ranks,
    models: dict[int, Path],
    town: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    blocks: int,
    recompute: Any,
    stage: int,
    accumulation: int,
) -> None:
    """Passes and optimizer steps alone: on CPUs the export's copies in fp32 count as well, with GPUs they are the
    host's. VAE and text encoders run in the pass and are frozen, as is LoRA's base."""
    model = {"pretrained": str(models[blocks]), "text_tokens": TOKENS, "latents": "fly", "texts": "fly"}
    model |= {"rank": 4} if task == "flux-lora" else {"average": False, "export_original": False}
    job = job_of(
        town,
        task=task,
        steps=2,
        global_batch=8,
        accumulation=accumulation,
        checkpoint_every=2,
        sample_every=0,
        data={"size": 128},
        zero={"stage": stage, "precision": "bf16"},
        resources={"ranks_per_node": 2},
        model=model | {"recompute": recompute},
    )
    monkeypatch.setattr(fit, "BUCKET", BUCKET)
    measured = max(fresh.call(_measured, job.model_dump(mode="json"), str(tmp_path), BUCKET))
    found = footprint(job, NO_FACTS, 8 // (2 * accumulation))
    assert fit.rank_bytes(found, 2, accumulation, "cpu")["total"] == pytest.approx(measured, rel=0.12)


def _measured(world: Any, job_json: dict[str, Any], run: str, bucket: int) -> int:
    """The most bytes that torch's CPU allocator had given out during passes and optimizer steps."""
    import gc
    from unittest import mock

    from torch.profiler import ProfilerActivity, profile, record_function

    from semiocity.train import zero
    from semiocity.train.loop import run as train
    from semiocity.train.options import TrainJob

    def marked(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function("step"):
                return plain(*args, **kwargs)

        return call

    job = TrainJob.model_validate(job_json)
    gc.collect()
    with (
        mock.patch.object(zero, "BUCKET_ELEMENTS", bucket),
        mock.patch.object(zero.Engine, "backward", marked(zero.Engine.backward)),
        mock.patch.object(zero.Engine, "step_with", marked(zero.Engine.step_with)),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        train(job, Path(run), job.dataset, world, lambda: False)
    events = seen.profiler.kineto_results.events()
    steps = [(event.start_ns(), event.end_ns()) for event in events if event.name() == "step"]
    assert len(steps) == 2 * (job.accumulation + 1)
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        if any(began <= event.start_ns() <= ended for began, ended in steps):
            most = max(most, held)
    return most
