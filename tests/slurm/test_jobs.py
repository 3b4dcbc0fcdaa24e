"""The main job on a real SLURM, in the real image: arrays, preemption, kills. What a user trusts the toolkit with."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project
from trainings import digests, preempt, results, starts, step

pytestmark = [pytest.mark.slurm, pytest.mark.apptainer]

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=96", "--set", "source.val=16", "--set", "shard_rows=16"]
TRAIN = [
    "--set", "data.size=32",
    "--set", "model.channels=8",
    "--set", "model.spade_hidden=8",
    "--set", "steps=24",
    "--set", "global_batch=8",
    "--set", "log_every=1",
    "--set", "optimizer.warmup_steps=4",
    "--set", "checkpoint_every=1000",
    "--set", "sample_every=0",
    "--set", "resources.nodes=2",
    "--set", "resources.ranks_per_node=1",
    "--set", "resources.timeout_min=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any, image: Path) -> Project:
    """A project whose dataset was packed, captioned and segmented as arrays on the cluster, in the image."""
    folder = tmp_path_factory.mktemp("project")
    made = make_project(
        folder,
        f'executor = "slurm"\npartition = "main"\n[container]\nimage = "{image}"\n',
        cluster.environment,
    )
    made.run("pack", "shards/city.toml", *SETS, "--wait")
    return made


def test_arrays_pack_caption_and_segment(project: Project, tmp_path: Path) -> None:
    project.run("caption", "jobs/caption.toml", "--wait")
    project.run("segment", "jobs/segment.toml", "--wait")
    status = project.status()
    columns = {column["column"]: column for column in status["datasets"][0]["columns"]}
    assert set(columns) == {"base", "caption", "mask"}
    assert all(column["current"] and column["shards"] == column["of"] == 7 for column in columns.values())
    for run in status["runs"]:
        assert run["executor"] == "slurm"
        assert set(run["tasks"]) == {"done"}
    attempt = json.loads((project.folder / "runs/caption-city/attempts/0001/attempt.json").read_text())
    assert len({job.partition("_")[0] for job in attempt["jobs"][:-1]}) == 1, "one array for all tasks"
    assert project.run("verify", "data/city").returncode == 0
    # The same on this machine, without SLURM and image: the same bytes.
    local = make_project(tmp_path / "local", 'executor = "local"\n', {})
    local.run("pack", "shards/city.toml", *SETS)
    local.run("caption", "jobs/caption.toml")
    local.run("segment", "jobs/segment.toml")
    assert digests(local.folder / "data/city/columns") == digests(project.folder / "data/city/columns")
    # Nothing is computed twice.
    again = project.run("caption", "jobs/caption.toml", "--wait")
    assert "nothing to do" in again.stdout
    assert not (project.folder / "runs/caption-city/attempts/0002").exists()


def test_a_caption_task_killed_inside_a_shard_costs_that_shard_only(project: Project) -> None:
    """SIGKILL for one task; the job run again makes what is missing, byte for byte as if nothing had happened."""
    slow = [
        "--set",
        "resources.retries.crash=0",  # otherwise it comes back by itself (see test_retries.py)
        "--set",
        'column="slow"',
        "--set",
        'run="slow"',
        "--set",
        "args.rehearse_slow_batch_s=1.0",
        "--set",
        "args.batch=4",
    ]
    run = project.folder / "runs" / "slow"
    project.run("caption", "jobs/caption.toml", *slow)

    def victim() -> dict[str, Any] | None:
        for path in sorted(run.glob("attempts/0001/tasks/*.json")):
            facts = json.loads(path.read_text())
            if facts.get("state") == "running" and facts.get("rows", 0) > 0:
                return facts
        return None

    project.wait(lambda: victim() is not None, "a task in the middle of a shard")
    facts = victim()
    assert facts
    os.kill(facts["pid"], signal.SIGKILL)
    project.wait(
        lambda: (
            "running" not in project.run_status("slow")["tasks"] and "queued" not in project.run_status("slow")["tasks"]
        ),
        "ended",
    )
    status = project.run_status("slow")
    assert any(problem["state"] in ("lost", "failed") for problem in status["problems"])
    folder = next((project.folder / "data/city/columns/slow").iterdir())
    before = digests(folder)
    receipts = {path for path in before if path.endswith(".json") and path[6].isdigit()}
    assert 0 < len(receipts) < 7
    project.run("caption", "jobs/caption.toml", *slow, "--wait")
    after = digests(folder)
    assert {path: after[path] for path in receipts} == {path: before[path] for path in receipts}
    redone = json.loads((run / "attempts/0002/attempt.json").read_text())["tasks"]
    assert sum(len(task) for task in redone) == 7 - len(receipts), "just the missing shards"
    assert not [path for path in after if path.endswith((".tmp", ".lease"))]


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> dict[str, Any]:
    project.run("train", "jobs/demo-train.toml", *TRAIN, "--set", 'run="calm"', "--wait")
    run = project.folder / "runs" / "calm"
    assert project.run_status("calm")["restarts"] == 0
    found = results(run)
    assert found["steps"] == list(range(1, 25))
    assert found["checkpoint"]["step"] == "step-00000024"
    return found


def test_a_rank_that_saves_late_leaves_no_half_checkpoint(
    project: Project, cluster: Any, undisturbed: dict[str, Any]
) -> None:
    """Rank 1 takes 6 s longer to save than rank 0 when the job is preempted. The training comes back by itself and
    nobody can tell; of the other optimizers, stages and tasks: test_resume_jobs.py."""
    slow = ["--set", "rehearse.slow_step_s=0.5", "--set", "rehearse.slow_save_s=[0, 6]"]
    project.run("train", "jobs/demo-train.toml", *TRAIN, *slow, "--set", 'run="late"')
    run = project.folder / "runs" / "late"
    project.wait(lambda: step(run) >= 4, "past step 4")
    preempt(cluster)
    project.wait(lambda: (run / "done.json").exists(), "finished after coming back", timeout_s=300)
    assert project.run_status("late")["restarts"] >= 1
    project.wait(lambda: set(project.run_status("late")["tasks"]) == {"done"}, "done")
    assert starts(run)[-1] > 0, "it really resumed"
    assert results(run) == undisturbed
    left = [path.name for path in (run / "checkpoints").iterdir()]
    assert not [name for name in left if not name.startswith(("step-", "latest"))], left
