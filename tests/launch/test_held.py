"""Jobs that SLURM holds are named by `status`, with what to do; nodes that are kept away from, with why."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_status import attempt_with, say

from semiocity.errors import UserError
from semiocity.launch import bad_nodes, held, squeue, status, status_text
from semiocity.launch.squeue import Seen


@pytest.mark.parametrize(
    ("reason", "stuck", "todo"),
    [
        ("launch failed requeued held", True, "scontrol release 7_1"),
        ("launch_failed_requeued_held", True, "scontrol release 7_1"),
        ("user env retrieval failed requeued held", True, "scontrol release 7_1"),
        ("job requeued in held state", True, "scontrol release 7_1"),
        ("job requeued in special exit state", True, "scontrol release 7_1"),
        ("JobHeldAdmin", True, "ask the site"),
        ("JobHeldUser", True, "scontrol release 7_1"),
        ("DependencyNeverSatisfied", True, "semiocity cancel caption-city"),
        ("BadConstraints", True, "semiocity doctor"),
        ("PartitionNodeLimit", True, "resources.nodes"),
        ("PartitionTimeLimit", True, "resources.timeout_min"),
        ("AssocMaxWallDurationPerJobLimit", True, "resources.timeout_min"),
        ("QOSMaxGRESPerJob", True, "[resources]"),
        ("AssocGrpCPUMinutesLimit", True, "another account"),
        ("AccountNotAllowed", True, "jobs/cluster.toml"),
        ("InvalidQOS", True, "jobs/cluster.toml"),
        ("PartitionDown", False, "opens it again"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", False, "when they are back"),
    ],
)
def test_reasons_that_a_person_should_know_of(reason: str, stuck: bool, todo: str) -> None:
    (found,) = held.find({"7_1": Seen("PENDING", reason)}, "caption-city")
    assert found.stuck is stuck and todo in found.todo and "{" not in str(found)
    assert reason in str(found)


@pytest.mark.parametrize(
    "reason",
    ["Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "QOSMaxJobsPerUserLimit", "Licenses",
     "AssocGrpGRES", "QOSMaxCpuPerUserLimit", "None", ""],
)  # fmt: skip
def test_who_merely_waits_for_a_turn_is_not_mentioned(reason: str) -> None:
    assert held.find({"7": Seen("PENDING", reason)}, "r") == []


def test_status_says_what_is_held_and_where_jobs_do_not_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = attempt_with(
        tmp_path / "runs" / "caption-city",
        ["9_0", "9_1", "9_2", "9_3"],
        executor="slurm",
        excluded={"n3": "2 tasks failed there (crash), none succeeded"},
    )
    attempt.avoided.write_text("n1\tbad_node\nn3\tbad_node\n")
    queue = {
        "9_0": Seen("RUNNING", "None"),
        "9_1": Seen("PENDING", "launch failed requeued held"),
        "9_2": Seen("PENDING", "launch failed requeued held"),
        "9_3": Seen("PENDING", "Priority"),
    }

    def asked(_: Any) -> dict[str, Seen]:
        return queue

    monkeypatch.setattr(squeue, "look", asked)
    facts = status.collect(tmp_path / "data", tmp_path / "runs")
    (run,) = facts["runs"]
    assert run["tasks"] == {"queued": 3, "running": 1}
    assert [(item["reason"], item["jobs"]) for item in run["held"]] == [("launch failed requeued held", ("9_1", "9_2"))]
    assert not status.healthy(facts), "nobody need wait for these"
    text = status_text.render(facts)
    assert "2 tasks wait (launch failed requeued held): a node could not start it" in text
    assert "scontrol release 9" in text
    assert "keeps away from n3: 2 tasks failed there (crash), none succeeded" in text
    assert "keeps away from n1: a task that came back: its node lacks what the job needs" in text
    queue["9_1"] = queue["9_2"] = Seen("PENDING", "ReqNodeNotAvail")
    assert status.healthy(status.collect(tmp_path / "data", tmp_path / "runs")), "the site mends that"


def test_status_says_which_task_has_fallen_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller believes in a job that is long gone."""
    attempt = attempt_with(tmp_path / "runs" / "caption-city", ["9_0", "9_1", "9_2"], executor="slurm")
    for index, (told_s, logged_s) in enumerate([(30, 700), (700, 700), (700, 30)]):
        say(attempt, index, job=f"9_{index}", state="running", updated=time.time() - told_s)
        log = attempt.logs / f"9_{index}_0_log.out"
        log.touch()
        os.utime(log, (time.time() - logged_s,) * 2)
    monkeypatch.setattr(squeue, "look", lambda _: {f"9_{index}": Seen("RUNNING", "None") for index in range(3)})
    facts = status.collect(tmp_path / "data", tmp_path / "runs")
    (silent,) = facts["runs"][0]["silent"]
    assert (silent["task"], silent["job"]) == (1, "9_1"), "the last came back a moment ago: its file is older than it"
    assert "scancel 9_1, then semiocity retry caption-city" in status_text.render(facts)

    def no_answer(_: Any) -> dict[str, Seen]:
        raise UserError("the controller does not answer")

    monkeypatch.setattr(squeue, "look", no_answer)
    assert status.collect(tmp_path / "data", tmp_path / "runs")["runs"][0]["silent"] == []


def test_nodes_of_an_attempt_without_failures(tmp_path: Path) -> None:
    attempt = attempt_with(tmp_path / "r", ["9"], executor="slurm")
    assert bad_nodes.avoided(attempt, attempt.read()) == {}
