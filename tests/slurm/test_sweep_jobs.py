"""A sweep on a real SLURM: a job a run, so many at a time, and nothing queued twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

pytestmark = pytest.mark.slurm

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=8", "--set", "source.val=2", "--set", "shard_rows=8"]
SITE, LATER = 'executor = "slurm"\npartition = "main"\n', '[sbatch]\nbegin = "now+1hour"\n'
SWEEP = ["--sweep", "optimizer.lr=1e-3,2e-3", "--sweep", "seed=0,1"]
TRAIN = [
    *("train", "jobs/demo-train.toml"),
    *("--set", "data.size=32"),
    *("--set", "resources.ranks_per_node=1"),
    *("--set", "resources.array_parallelism=2"),
]
NAMES = [f"sdm-city--lr-{lr}--seed-{seed}" for lr in ("0.001", "0.002") for seed in (0, 1)]


def slurm(project: Project, *words: str) -> str:
    done = subprocess.run(words, env={**os.environ, **project.environment}, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_project(tmp_path_factory.mktemp("packed"), 'executor = "local"\n', {})
    made.run("pack", "shards/city.toml", *SETS)
    shutil.rmtree(made.folder / "runs")
    return made.folder


@pytest.fixture
def project(packed: Path, tmp_path: Path, cluster: Any) -> Iterator[Project]:
    """A project whose jobs may not begin yet: what is queued stays where it can be looked at."""
    found = Project(Path(shutil.copytree(packed, tmp_path / "project")), cluster.environment)
    (found.folder / "jobs/cluster.toml").write_text(SITE + LATER)
    yield found
    slurm(found, "scancel", "--partition=main")


def job_of(project: Project, run: str) -> str:
    attempt = json.loads((project.folder / f"runs/{run}/attempts/0001/attempt.json").read_text())
    (job,) = attempt["jobs"]
    return str(job)


def queue(project: Project) -> dict[str, str]:
    """Job id -> what it waits for."""
    lines = slurm(project, "squeue", "--noheader", "--format=%i|%E").splitlines()
    return dict(line.strip().split("|") for line in lines)


def test_a_sweep_is_queued_in_lanes_and_once(project: Project) -> None:
    said = project.run(*TRAIN, *SWEEP).stdout
    assert "sweep sdm-city: 4 runs" in said
    jobs = [job_of(project, name) for name in NAMES]
    waits = queue(project)
    assert sorted(waits) == sorted(jobs)
    assert all(f"afterany:{jobs[i]}" not in waits[jobs[i + 1]] for i in range(3))
    assert "afterany" not in waits[jobs[0]] + waits[jobs[1]]
    assert f"afterany:{jobs[0]}" in waits[jobs[2]] and f"afterany:{jobs[1]}" in waits[jobs[3]]
    shown = json.loads(project.run("status", "sdm-city", "--json").stdout)
    assert [run["run"] for run in shown["runs"]] == NAMES
    assert all(run["tasks"] == {"queued": 1} for run in shown["runs"])

    # Again, with one value more: what is queued stays, what is new waits for the lane that is free first.
    more = ["--sweep", "optimizer.lr=1e-3,2e-3", "--sweep", "seed=0,1,2"]
    project.run(*TRAIN, *more)
    after = queue(project)
    assert len(after) == 6 and waits.items() <= after.items()

    # A cluster that would refuse one combination is asked before any is queued.
    wrong = project.run(*TRAIN, "--set", 'run="other"', "--sweep", "resources.mem_gb=1,900000", check=False)
    assert wrong.returncode == 2 and "other--mem_gb-900000" in wrong.stderr and "none was queued" in wrong.stderr
    assert len(queue(project)) == 6
    assert not list((project.folder / "runs").glob("other*"))


def test_what_finds_no_room_is_named_and_queued_later(project: Project) -> None:
    (project.folder / "jobs/cluster.toml").write_text(SITE + "max_submitted = 3\n" + LATER)
    first = project.run(*TRAIN, *SWEEP, check=False)
    assert first.returncode == 1
    assert "1 of 4 runs are not queued" in first.stderr and NAMES[3] in first.stderr
    slurm(project, "scancel", job_of(project, NAMES[0]))
    project.wait(lambda: len(queue(project)) == 2, "cancelled")
    (project.folder / "jobs/cluster.toml").write_text(SITE + "max_submitted = 4\n" + LATER)
    project.run(*TRAIN, *SWEEP)
    assert len(queue(project)) == 4
