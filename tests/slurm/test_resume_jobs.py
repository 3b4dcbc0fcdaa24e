"""Trainings that are preempted three times at random steps, on a real SLURM and in the real image: every optimizer at
every ZeRO stage, and both Flux tasks. What they leave must be what an undisturbed one leaves, bit by bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optimizer_cases import CASES, OFFLOADED, Case
from project import Project, make_project
from tiny_flux import TOKENS, save_flux
from trainings import preempt, results, starts, step

pytestmark = [pytest.mark.slurm, pytest.mark.apptainer]

STEPS = 16
STEP_S = 1.0
"""So slow that a preemption comes before the end."""
BANDS = ((1, 3), (4, 6), (7, 9))
"""Steps after which the job is preempted: one of each."""
COMMON: dict[str, Any] = {
    "data.size": 32,
    "steps": STEPS,
    "global_batch": 4,
    "log_every": 1,
    "checkpoint_every": 1000,
    "sample_every": 0,
    "optimizer.warmup_steps": 2,
    "optimizer.schedule": '"cosine"',
    "ema.decay": 0.9,
    "resources.nodes": 2,
    "resources.ranks_per_node": 1,
    "resources.timeout_min": 20,
}
SDM: dict[str, Any] = {"model.channels": 8, "model.spade_hidden": 8}
FLUX: dict[str, Any] = {"model.text_tokens": TOKENS, "model.pretrained": '"models/flux"'}
FLUX_TASKS: dict[str, dict[str, Any]] = {
    "flux-lora": {"model.text_encoders": '["clip", "t5"]', "model.dropout": 0.1, "model.average": "true"},
    "flux-full": {"model.train": '["*"]', "model.rates": '{"transformer_blocks.*" = 0.5}'},
}
Training = tuple[str, *Case]
"""Task and what its optimizer is."""
TRAININGS: list[Training] = [("sdm", *case) for case in CASES + OFFLOADED]
TRAININGS += [
    (task, "adamw", stage, prec, "none") for task in FLUX_TASKS for stage in (1, 2, 3) for prec in ("fp32", "bf16")
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any, image: Path) -> Project:
    """A captioned dataset and a tiny Flux, made on this machine; jobs go to the cluster and run in the image."""
    folder = tmp_path_factory.mktemp("resume") / "p"
    made = make_project(folder, 'executor = "local"\n', cluster.environment)
    sizes = ("source.size=[32, 32]", "source.train=24", "source.val=2", "shard_rows=16")
    made.run("pack", "shards/city.toml", *sets(*sizes))
    made.run("caption", "jobs/caption.toml")
    save_flux(folder / "models" / "flux")
    (folder / "jobs" / "cluster.toml").write_text(
        f'executor = "slurm"\npartition = "main"\n[container]\nimage = "{image}"\n'
    )
    demo = (folder / "jobs" / "demo-train-flux.toml").read_text()
    (folder / "jobs" / "flux-full.toml").write_text(
        demo.replace('task = "flux-lora"', 'task = "flux-full"').replace("rank = 4\n", "")
    )
    return made


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def arguments(training: Training, run: str, **more: Any) -> list[str]:
    """`semiocity train` of a training."""
    task, kind, stage, precision, offload = training
    file = {"sdm": "demo-train", "flux-lora": "demo-train-flux", "flux-full": "flux-full"}[task]
    own = SDM if task == "sdm" else FLUX | FLUX_TASKS[task]
    optimizer = {"optimizer.kind": f'"{kind}"', "optimizer.lr": 1e-3}
    zero = {"zero.stage": stage, "zero.precision": f'"{precision}"', "zero.offload": f'"{offload}"'}
    host = {} if offload == "none" else {"resources.mem_gb": 1}
    everything = COMMON | own | optimizer | zero | host | {"run": f'"{run}"'} | more
    return ["train", f"jobs/{file}.toml", *sets(*(f"{key}={value}" for key, value in everything.items()))]


def comes_back(
    project: Project, cluster: Any, training: Training, chance: random.Random, bands: Sequence[tuple[int, int]] = BANDS
) -> None:
    name = "-".join(map(str, training))
    stops = [chance.randint(*band) for band in bands]
    print(f"{name}: preempted after steps {stops}")
    project.run(*arguments(training, f"{name}-calm"), "--wait")
    calm = project.folder / "runs" / f"{name}-calm"
    expected = results(calm)
    assert expected["steps"] == list(range(1, STEPS + 1))
    assert starts(calm) == [0]
    project.run(*arguments(training, name, **{"rehearse.slow_step_s": STEP_S}))
    run = project.folder / "runs" / name
    for times, stop in enumerate(stops, 1):
        project.wait(partial(is_past, run, times, stop), f"past step {stop}", timeout_s=300)
        preempt(cluster)
    project.wait(lambda: (run / "done.json").exists(), "finished after coming back", timeout_s=300)
    begun = starts(run)
    assert len(begun) == 1 + len(stops) and begun == sorted(set(begun)), "it really resumed, further on each time"
    assert project.run_status(name)["restarts"] == len(stops)
    assert results(run) == expected


def is_past(run: Path, life: int, stop: int) -> bool:
    """Whether the training is past a step and, in its life number `life`, has made at least one."""
    begun = starts(run)
    return len(begun) == life and step(run) >= max(stop, begun[-1] + 1)


@pytest.fixture
def chance() -> random.Random:
    """Random numbers for a test; their seed is in its output."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def test_a_training_comes_back_from_a_preemption(project: Project, cluster: Any, chance: random.Random) -> None:
    """One case of the matrix, another each time."""
    comes_back(project, cluster, chance.choice(TRAININGS), chance, [(2, 9)])


@pytest.mark.soak
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: "-".join(map(str, training)))
def test_every_training_comes_back_from_three_preemptions(
    project: Project, cluster: Any, chance: random.Random, training: Training
) -> None:
    comes_back(project, cluster, training, chance)
