"""What a task says of its end, what it asks of its node, and whom it takes for gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semiocity.data.lease import Owner
from semiocity.errors import BadNode, OutOfMemory, UserError
from semiocity.launch import bad_nodes, causes, ends, task
from semiocity.launch.runs import Attempt, new_attempt
from semiocity.launch.world import single


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UserError("no such file"), causes.REFUSED),
        (BadNode("no GPU"), causes.BAD_NODE),
        (OutOfMemory("every row"), causes.OUT_OF_MEMORY),
        (MemoryError(), causes.OUT_OF_MEMORY),
        (OutOfMemoryError("CUDA out of memory"), causes.GPU_OUT_OF_MEMORY),
        (KeyError("x"), causes.CRASH),
    ],
)
def test_every_exception_has_a_cause(error: BaseException, cause: str) -> None:
    assert task.said(error)[0] == cause


def test_a_node_without_the_dataset_is_a_bad_node_on_a_cluster_alone(tmp_path: Path) -> None:
    data = {"executor": "slurm", "dataset": str(tmp_path / "none"), "kind": "stage"}
    with pytest.raises(BadNode, match="not there on"):
        task.check_node(data)
    task.check_node({**data, "executor": "local"})
    task.check_node({**data, "dataset": str(tmp_path)})


def test_a_job_that_comes_back_removes_what_it_was_writing_when_it_was_killed(tmp_path: Path) -> None:
    attempt = new_attempt(tmp_path)
    for folder in ("ranks/7.0", "ranks/7.1"):
        (attempt.folder / folder).mkdir(parents=True)
    mine = [
        attempt.folder / "tasks" / ".0000.json.a.tmp",
        attempt.folder / "ranks" / "7.0" / ".rendezvous.json.a.tmp",
        tmp_path / ".progress.json.a.tmp",
    ]
    others = [
        attempt.folder / "tasks" / ".0001.json.a.tmp",
        attempt.folder / "ranks" / "7.1" / ".0000.json.a.tmp",
        tmp_path / ".job.json.a.tmp",
    ]
    for path in mine + others:
        path.touch()
    task._sweep(attempt, {"kind": "train"}, 0, single("7", restart=1))
    assert [path.exists() for path in mine + others] == [False] * 3 + [True] * 3


def submitted(run: Path, jobs: list[str], live: list[str], **more: Any) -> dict[str, Any]:
    data = {"executor": "slurm", "run": str(run), "jobs": jobs, "live": live, "tasks": [[0]] * len(jobs), **more}
    new_attempt(run).write(data)
    return data


def test_holders_that_the_queue_did_not_have_at_submission_are_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    submitted(run, ["70_0", "70_1"], [])
    gone = task._gone(submitted(run, ["90"], live=["70_1"]))

    def holder(job: str, number: int) -> Owner:
        return Owner(job, 0, number, "elsewhere", 1)

    assert gone(holder("70", 0)), "killed"
    assert not gone(holder("70", 1)), "still at work"
    assert not gone(holder("71", 0)), "another run's: age decides"
    assert not gone(holder("90", 0)), "of this attempt"


def test_a_runs_notes_tell_which_nodes_to_avoid(tmp_path: Path) -> None:
    run = tmp_path / "run"
    submitted(run, [f"70_{i}" for i in range(4)], [])
    attempt = Attempt(run, 1)
    assert bad_nodes.of_run(run) == {}
    for i, (node, state) in enumerate([("n1", "failed"), ("n1", "failed"), ("n2", "done"), ("n3", "done")]):
        facts = {"job": f"70_{i}", "restart": 0, "host": node, "state": state}
        attempt.task_file(i).write_text(json.dumps(facts))
        if state == "failed":
            ends.note(attempt, f"70_{i}", 0, causes.CRASH, "RuntimeError: odd", node)
    assert list(bad_nodes.of_run(run)) == ["n1"]
    assert "2 tasks failed there (crash), none succeeded" in bad_nodes.of_run(run)["n1"]


def test_a_gate_needs_no_dataset_on_its_node(tmp_path: Path) -> None:
    """The pictures of a pipeline's prompts are about none, and their run folder is made later."""
    task.check_node({"executor": "slurm", "dataset": str(tmp_path / "later"), "kind": "pipeline"})
