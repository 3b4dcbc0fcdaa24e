"""What `semiocity fit` says, held against the allocator: two ranks train, and every allocation is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SDM
from train_ranks import Ranks, job_of

from semiocity.cli import main
from semiocity.config import Cluster
from semiocity.launch import fit, jobs
from semiocity.train.footprint import footprint
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import DatasetFacts

MODEL = {
    **SDM,
    "channels": 32,
    "mult": [1, 2],
    "attention_resolutions": [],
    "spade_hidden": 16,
    "edges": False,
    "dropout": 0.0,
}
CLASSES = 12


def settings(stage: int, precision: str, **more: Any) -> dict[str, Any]:
    return {
        "task": "sdm",
        "model": MODEL,
        "zero": {"stage": stage, "precision": precision},
        "steps": 2,
        "global_batch": 8,
        "checkpoint_every": 2,
        "sample_every": 0,
        "data": {"size": 32},
        "resources": {"ranks_per_node": 2},
        **more,
    }


def test_bytes_agree_with_the_allocator(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    """torch's profiler sees each allocation of the CPU allocator, in kernels too. Resident memory would tell nothing:
    the interpreter is a hundred times larger than these models."""
    facts = facts_of(city)
    for stage, precision in ((0, "fp32"), (2, "bf16"), (3, "bf16")):
        job = job_of(city, **settings(stage, precision))
        measured = max(ranks.call(_measured, job.model_dump(mode="json"), str(tmp_path / f"{stage}{precision}")))
        expected = fit.rank_bytes(footprint(job, facts, 4), 2, 1, "cpu")["total"]
        assert expected == pytest.approx(measured, rel=0.1), f"stage {stage}, {precision}"


UNTUNED: dict[str, dict[str, Any]] = {
    "small": {**settings(2, "fp32"), "data": {"size": 16}, "global_batch": 4},
    "step-dominated": {
        **settings(1, "bf16"),
        "model": {**MODEL, "channels": 96},
        "data": {"size": 8},
        "global_batch": 2,
    },
    "ZeRO-3": {**settings(3, "bf16"), "model": {**MODEL, "channels": 64}, "data": {"size": 16}, "global_batch": 4},
    "accumulating": {**settings(2, "bf16"), "accumulation": 2, "data": {"size": 16}},
}
"""Cases by which no term was set."""


@pytest.mark.soak
@pytest.mark.parametrize("name", UNTUNED)
def test_bytes_of_other_cases_agree_as_well(name: str, ranks: Ranks, city: Path, tmp_path: Path) -> None:
    job = job_of(city, **UNTUNED[name])
    measured = max(ranks.call(_measured, job.model_dump(mode="json"), str(tmp_path / "run")))
    samples = job.global_batch // (2 * job.accumulation)
    expected = fit.rank_bytes(footprint(job, facts_of(city), samples), 2, job.accumulation, "cpu")["total"]
    assert expected == pytest.approx(measured, rel=0.1)


def facts_of(dataset: Path) -> DatasetFacts:
    from semiocity.data import manifest

    classes = manifest.read_manifest(dataset)["recipe"]["classes"]
    return DatasetFacts("city", "", tuple(c["name"] for c in classes), ((0, 0, 0),) * len(classes), None)


def _measured(world: Any, job_json: dict[str, Any], run: str) -> int:
    """The most bytes that torch's CPU allocator had given out during a whole training."""
    import gc

    from torch.profiler import ProfilerActivity, profile

    from semiocity.train.loop import run as train
    from semiocity.train.options import TrainJob

    job = TrainJob.model_validate(job_json)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train(job, Path(run), job.dataset, world, lambda: False)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def found_for(parameters: int, peak: int, small: int = 0) -> dict[str, Any]:
    phase = {
        "name": "sdm",
        "stage": 2,
        "precision": "bf16",
        "ema": True,
        "every": 1,
        "parameters": parameters,
        "untrained": 0,
        "small": small,
        "pass": [(0, peak)],
        "flops": 1e12,
    }
    return {"phases": [phase], "frozen": 0, "batch": 0}


def test_states_of_a_large_model_are_those_of_the_notes() -> None:
    """Flux, 11.9 billion parameters on 64 GPUs with ZeRO-2: weights whole, master, moments and average divided."""
    states = fit.states(found_for(11_901_408_320, 0)["phases"][0], 64, 1)
    assert states["weights"] / 2**30 == pytest.approx(22.17, abs=0.01)
    assert (states["master"] + states["moments"]) / 2**30 == pytest.approx(2.08, abs=0.01)
    assert states["gradients"] == 100_000_000  # the bucket
    third = fit.states({**found_for(11_901_408_320, 0)["phases"][0], "stage": 3}, 64, 1)
    assert third["weights"] < states["weights"] / 50


def test_a_step_that_moves_a_large_model_may_need_more_than_the_pass() -> None:
    assert fit.rank_bytes(found_for(10**9, 10**6), 2, 1, "cuda")["pass"] == 2e9


def test_fit_of_a_job_says_whether_it_fits_and_what_would(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tmp_path / "train.toml"
    job.write_text(
        f"""task = "sdm"
dataset = "{city}"
steps = 1000
global_batch = 16
[data]
size = 32
[resources]
ranks_per_node = 2
gpus_per_node = 2
mem_gb = 1
[model]
channels = 32
mult = [1, 2]
attention_resolutions = []
spade_hidden = 16
"""
    )
    assert main(["fit", str(job), "--gpu-gb", "2.05", "--gpu", "a100", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["fits"] is False and facts["samples"] == 8 and facts["ranks"] == 2
    assert facts["host_gb"] > facts["host_room_gb"] == 1 and facts["host_fits"] is False
    by_setting = {item["set"]: item["needed_gb"] for item in facts["suggestions"]}
    assert by_setting["accumulation=2"] < facts["needed_gb"]
    assert by_setting["model.checkpoint=true"] < facts["needed_gb"]
    assert facts["time"]["basis"].startswith("assumed: 35%")
    assert facts["time"]["gpu_hours"] == pytest.approx(2 * facts["time"]["hours"], abs=0.1)
    # What it suggests is what it would say of the job with that setting.
    work = jobs.train(job, ["model.checkpoint=true"])
    classes = [f"class {i}" for i in range(CLASSES)]
    found = footprint(TrainJob.model_validate(work.job), DatasetFacts("", "", tuple(classes), (), None), 8)
    again = (fit.rank_bytes(found, 2, 1, "cuda")["total"] + fit.GPU_OVERHEAD) / 1e9
    assert by_setting["model.checkpoint=true"] == pytest.approx(again, abs=0.02)
    assert "--set model.checkpoint=true" in fit.render(facts)


def test_time_is_measured_once_the_run_has_made_steps(city: Path, tmp_path: Path) -> None:
    job = job_of(city, **settings(2, "bf16", steps=1000, global_batch=16))
    found = found_for(10**6, 0)
    assert "hours" not in fit._time(job, tmp_path, found, 2, None, "cpu")
    (tmp_path / "progress.json").write_text('{"step": 100, "samples_per_s": 4.0}')
    told = fit._time(job, tmp_path, found, 2, None, "cpu")
    assert (told["basis"], told["hours"], told["hours_left"]) == ("measured", 1.11, 1.0)


def test_other_jobs_and_tasks_without_shapes_are_refused(city: Path) -> None:
    from dataclasses import replace

    from semiocity.errors import UserError

    job = job_of(city, **settings(2, "bf16"))
    work = jobs.Work("train", Path("/nowhere"), city, job.model_dump(mode="json"), job.resources)
    with pytest.raises(UserError, match="this is a pack job"):
        fit.fit(replace(work, kind="pack"), Cluster())
