"""Training on several nodes: what happens when one rank stands still, is killed, or fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

from semiocity import ranks
from semiocity.launch.first_cause import first_cause
from semiocity.launch.runs import Attempt

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]
# Ranks take long to start on a busy machine.
PATIENCE_S = 1200

PACK = ["--set", "source.size=[32, 32]", "--set", "source.train=24", "--set", "source.val=4", "--set", "shard_rows=16"]
TRAIN = [
    "data.size=32", "model.channels=8", "model.spade_hidden=8", "model.mult=[1, 1]", "model.res_blocks=1",
    "steps=16", "global_batch=4", "log_every=1", "checkpoint_every=5", "sample_every=0", "resources.nodes=2",
    "resources.ranks_per_node=1", "resources.timeout_min=40", "rehearse.slow_step_s=0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Project:
    """Packed on this machine; trainings run on the cluster in this environment, which is enough for ranks."""
    folder = tmp_path_factory.mktemp("nodes")
    made = make_project(folder, 'executor = "local"\n', cluster.environment)
    made.run("pack", "shards/city.toml", *PACK)
    (folder / "jobs" / "cluster.toml").write_text('executor = "slurm"\npartition = "main"\n')
    return made


def train(project: Project, name: str, *sets: str) -> Path:
    arguments = [word for setting in (*TRAIN, f'run="{name}"', *sets) for word in ("--set", setting)]
    project.run("train", "jobs/demo-train.toml", *arguments)
    return project.folder / "runs" / name


def step(run: Path) -> int:
    try:
        return int(json.loads((run / "progress.json").read_text())["step"])
    except (FileNotFoundError, ValueError):
        return 0


def records(run: Path) -> dict[int, dict[str, Any]]:
    found = ranks.restarts(run / "attempts" / "0001")
    return ranks.read(found[-1][2]) if found else {}


def ended(project: Project, name: str) -> Callable[[], bool]:
    return lambda: not {"running", "queued"} & set(project.run_status(name)["tasks"])


def test_a_rank_that_stands_still_is_found_and_the_job_goes_on(project: Project) -> None:
    """SIGSTOP inside a training of 2 nodes × 2 ranks: stacks of the others, one requeue, all steps in the end."""
    run = train(project, "hung", "resources.ranks_per_node=2", "hang.times=5", "hang.at_least_s=6")
    saved = run / "checkpoints" / "step-00000005"
    project.wait(lambda: step(run) >= 7 and saved.exists(), "past step 7", PATIENCE_S)
    victim = records(run)[2]
    os.kill(victim["pid"], signal.SIGSTOP)
    project.wait(lambda: (run / "done.json").exists(), "finished after the hang", PATIENCE_S)
    cause = first_cause(Attempt(run, 1), restart=0)
    assert cause is not None
    assert (cause.kind, cause.rank, cause.host) == ("hung", 2, victim["host"]), cause
    assert "no more progress" in cause.reason
    assert [path.name for path in cause.stacks] == ["0000.stacks", "0001.stacks", "0003.stacks"]
    assert all("loop.py" in path.read_text() for path in cause.stacks), "the stacks show where"
    assert not Path(f"/proc/{victim['pid']}").exists(), "nothing is left of it"
    starts = [json.loads(line)["first_step"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert starts[0] == 0
    assert len(starts) == 2
    assert starts[1] in (5, 10), "from the newest checkpoint"
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 17))


def test_a_killed_rank_ends_the_job_and_is_named(project: Project) -> None:
    run = train(project, "killed")
    project.wait(lambda: step(run) >= 2, "past step 2", PATIENCE_S)
    os.kill(records(run)[1]["pid"], signal.SIGKILL)
    project.wait(ended(project, "killed"), "ended", PATIENCE_S)
    cause = first_cause(Attempt(run, 1))
    assert cause is not None
    assert (cause.kind, cause.rank) == ("killed", 1), cause
    assert "without a word" in cause.reason


def test_the_error_of_the_rank_that_failed_first_is_the_cause(project: Project) -> None:
    run = train(project, "raised", "rehearse.fail=[1, 3]")
    project.wait(ended(project, "raised"), "ended", PATIENCE_S)
    cause = first_cause(Attempt(run, 1))
    assert cause is not None
    assert (cause.kind, cause.rank) == ("failed", 1), cause
    assert cause.reason == "RuntimeError: rehearsal: rank 1 fails in step 3"
    assert cause.log is not None
    assert cause.reason in cause.log.read_text(), "its own log, not rank 0's"
