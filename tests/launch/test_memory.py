"""What "auto" chooses for a training, and offload that the host could not hold: settled before anything is queued."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_flux import save_flux

from semiocity.config import Cluster, check
from semiocity.errors import UserError
from semiocity.launch import fit, memory
from semiocity.launch.jobs import Work
from semiocity.train.options import TrainJob, identity

FLUX = 11_901_408_320


def work(**changes: Any) -> Work:
    """A training of 8 GPUs on a node."""
    base = {
        "dataset": "data/x",
        "task": "sdm",
        "steps": 10,
        "global_batch": 16,
        "data": {"size": 64},
        "resources": {"gpus_per_node": 8, "ranks_per_node": 8, "mem_gb": 900},
        "model": {"attention_resolutions": [], "checkpoint": "auto"},
        "zero": {"stage": "auto", "offload": "auto"},
    }
    job = check({**base, **changes}, TrainJob, "job.toml")
    return Work("train", Path("runs/x"), Path("data/x"), job.model_dump(mode="json"), job.resources)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a measurement: as many parameters as Flux, with activations of 50 GB, or 8 when recomputed."""

    def measure(work: Work, cluster: Cluster, variants: dict[str, Any]) -> dict[str, Any]:
        return {name: facts(50e9 if name in ("False", "0") else 8e9, work.job["zero"]) for name in variants}

    monkeypatch.setattr(fit, "measure", measure)


def facts(peak: float, zero: dict[str, Any]) -> dict[str, Any]:
    phase = {
        **zero,
        "name": "x",
        "optimizer": "adamw",
        "ema": True,
        "every": 1,
        "parameters": FLUX,
        "small": 10**6,
        "largest": 60_000_000,
        "untrained": 0,
        "pass": [(0, peak)],
        "flops": 1e12,
    }
    return {"phases": [phase], "frozen": 0, "batch": 0}


@pytest.mark.parametrize(
    ("gpu_gb", "expected"),
    [
        (141, (2, "none", False)),
        (96, (2, "none", True)),
        (60, (3, "none", True)),
        (40, (2, "optimizer", True)),
        (24, (3, "optimizer", True)),
        (14, (3, "parameters", True)),
    ],
)
@pytest.mark.usefixtures("large")
def test_the_fastest_that_fits_is_chosen(gpu_gb: float, expected: tuple[Any, ...]) -> None:
    settled, said = memory.settle(work(), Cluster(gpu_gb=gpu_gb))
    job = TrainJob.model_validate(settled.job)
    assert (job.zero.stage, job.zero.offload, job.model["checkpoint"]) == expected, said
    assert job.choose == ()
    assert len(said) == 3
    assert all(f"of {gpu_gb} GB" in line for line in said)
    assert memory.settle(settled, Cluster(gpu_gb=gpu_gb))[0].job == settled.job


@pytest.mark.usefixtures("large")
def test_only_what_says_auto_is_chosen() -> None:
    settled, said = memory.settle(work(zero={"stage": "auto"}), Cluster(gpu_gb=60))
    assert TrainJob.model_validate(settled.job).zero.stage == 3
    assert "zero.offload" not in " ".join(said)
    with pytest.raises(
        UserError, match=r'nothing that "auto" may choose \(zero.stage\) fits a GPU of 20 GB; the least'
    ):
        memory.settle(work(zero={"stage": "auto"}, model={"attention_resolutions": []}), Cluster(gpu_gb=20))
    with pytest.raises(UserError, match=r'"auto" needs to know the memory of a GPU: set gpu_gb in jobs/cluster.toml'):
        memory.settle(work(), Cluster())


@pytest.mark.usefixtures("large")
def test_offload_beyond_the_hosts_memory_is_refused() -> None:
    def asked(mem_gb: float) -> Work:
        zero = {"stage": 3, "offload": "optimizer"}
        resources = {"gpus_per_node": 8, "ranks_per_node": 8, "mem_gb": mem_gb}
        return work(zero=zero, model={"attention_resolutions": []}, resources=resources)

    assert memory.settle(asked(300), Cluster()) == (asked(300), [])
    # 22 bytes a parameter, and what Python takes.
    with pytest.raises(UserError, match=r"would keep 267\.\d GB in its memory, and resources.mem_gb is 200"):
        memory.settle(asked(200), Cluster())
    # Nor does "auto" choose it: 8 GPUs of 40 GB then have nothing left.
    small = {"gpus_per_node": 8, "ranks_per_node": 8, "mem_gb": 100}
    with pytest.raises(UserError, match=r"fits a GPU of 24 GB"):
        memory.settle(work(resources=small), Cluster(gpu_gb=24))


def test_auto_where_there_is_no_such_setting_is_refused() -> None:
    with pytest.raises(UserError, match=r"recompute: unknown key"):
        work(model={"attention_resolutions": [], "recompute": "auto"})


def test_choices_change_no_result() -> None:
    chosen = identity(TrainJob.model_validate(work().job))
    plain: dict[str, list[int]] = {"attention_resolutions": []}
    assert identity(TrainJob.model_validate(work(model=plain, zero={"stage": 3}).job)) == chosen


def test_flux_is_measured_without_its_weights(tmp_path: Path) -> None:
    """A pipeline folder whose weights are not there: configurations suffice, for both tasks."""
    model = save_flux(tmp_path / "flux")
    for weights in model.rglob("*.safetensors"):
        weights.unlink()
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    from semiocity.train.footprint import footprint
    from semiocity.train.tasks.base import DatasetFacts

    no_facts = DatasetFacts("x", "", (), (), None)
    trained = {}
    for task, own in (("flux-full", {}), ("flux-lora", {"rank": 4, "latents": "fly", "texts": "fly"})):
        base = {"dataset": "data/x", "task": task, "steps": 10, "global_batch": 2, "data": {"size": 256}}
        for recompute in (0, "all"):
            options = {"pretrained": str(model), "text_tokens": 16, "recompute": recompute, **own}
            job = check({**base, "model": options}, TrainJob, "job.toml")
            found = footprint(job, no_facts, 2)
            trained[task, recompute] = found["phases"][0]
            assert found["frozen"] > 0
            # Cached texts need the encoders once, before the rest is made.
            more = found["start"] - found["frozen"] - found["phases"][0]["untrained"]
            assert more > 2 * found["phases"][0]["parameters"] if task == "flux-full" else more > 0
    full, lora = trained["flux-full", 0], trained["flux-lora", 0]
    assert full["parameters"] > 10 * lora["parameters"] > 0
    assert lora["untrained"] >= 2 * full["parameters"] - 1000
    kept, recomputed = (fit.pass_bytes(trained["flux-full", recompute], 2, 2) for recompute in (0, "all"))
    assert recomputed < 0.6 * kept
    assert trained["flux-full", "all"]["flops"] > 1.2 * full["flops"]


def test_recomputing_is_suggested_for_flux_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def measure(work: Work, cluster: Cluster, variants: dict[str, Any]) -> dict[str, Any]:
        asked.update(variants)
        return {name: facts(8e9 if "recompute" in name else 50e9, work.job["zero"]) for name in variants}

    monkeypatch.setattr(fit, "measure", measure)
    model = {"pretrained": str(save_flux(tmp_path / "flux")), "recompute": 0}
    found = fit.fit(work(task="flux-full", model=model, zero={"stage": 2}), Cluster(gpu_gb=80))
    assert asked["model.recompute"]["model"] == {"recompute": "all"}
    (item,) = (item for item in found["suggestions"] if "recompute" in item["set"])
    assert item["set"] == 'model.recompute="all"' and item["needed_gb"] == pytest.approx(
        found["needed_gb"] - 42, abs=0.1
    )


def test_memory_that_loading_takes_counts() -> None:
    small = facts(1e9, {"stage": 2, "precision": "bf16"})
    small["phases"][0]["parameters"] = 10**6
    parts = fit.rank_bytes({**small, "start": 30 * 10**9}, 1, 1, "cuda")
    assert parts["total"] == 30e9 == sum(value for name, value in parts.items() if name != "total")
    assert (
        fit.rank_bytes({**small, "start": 10**6}, 1, 1, "cuda")["total"] == fit.rank_bytes(small, 1, 1, "cuda")["total"]
    )


def test_states_of_the_optimizers_are_those_of_the_table() -> None:
    """Flux on one GPU: 16 bytes a parameter, 10 with moments in 8 bits, 6 in bf16 alone, and gradients."""
    zero = {"stage": 2, "precision": "bf16", "offload": "none"}
    phase = {**facts(0, zero)["phases"][0], "ema": False}
    for kind, each in (("adamw", 2 + 4 + 8), ("adamw_8bit", 2 + 4 + 2.03), ("adamw_bf16", 2 + 4)):
        held = fit.states({**phase, "optimizer": kind}, 1, 1)
        assert held["weights"] + held["master"] + held["moments"] == pytest.approx(each * FLUX)
    for kind, each in (("adamw", 12), ("adamw_8bit", 6.03), ("adamw_bf16", 6), ("adafactor", 4.01), ("muon", 8)):
        saved = {"phases": [{**phase, "optimizer": kind}]}
        assert fit.checkpoint_bytes(saved) == pytest.approx(each * FLUX)
    found = {"phases": [{**phase, "optimizer": "adamw_bf16"}], "frozen": 0, "batch": 0}
    assert fit.rank_bytes(found, 1, 1, "cuda")["total"] == pytest.approx(8 * FLUX, rel=0.01)
    there = {**phase, "offload": "optimizer"}
    assert fit.offloaded(there, 4) == pytest.approx(18 * FLUX / 4)
    assert fit.states(there, 4, 1)["moments"] == 0
