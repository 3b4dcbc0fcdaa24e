"""`semiocity status` tells the truth from files, for jobs that ended well, badly, or without a word."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semiocity.files import write_json
from semiocity.launch import status, status_text
from semiocity.launch.runs import Attempt, new_attempt


def attempt_with(run: Path, jobs: list[str], executor: str = "local", **more: Any) -> Attempt:
    attempt = new_attempt(run)
    attempt.write(
        {
            "kind": "stage",
            "job": {},
            "run": str(run),
            "dataset": "/data/city",
            "column": "caption",
            "revision": "abc",
            "executor": executor,
            "host": socket.gethostname(),
            "tasks": [[index] for index in range(len(jobs))],
            "merge": None,
            "jobs": jobs,
            **more,
        }
    )
    return attempt


def say(attempt: Attempt, index: int, **facts: Any) -> None:
    write_json(attempt.task_file(index), facts)


def test_a_local_task_that_died_without_a_word_is_lost(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    # A controller is known by its command line; this process merely has a number that it might have had.
    controller = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # submitit"])
    jobs = [str(dead.pid), str(controller.pid), str(os.getpid()), "1"]
    attempt = attempt_with(tmp_path / "caption-city", jobs)
    for index in range(3):
        say(attempt, index, state="running", job=jobs[index])
    say(attempt, 3, state="done", job="1")
    try:
        assert [state["state"] for state in status.task_states(attempt)] == ["lost", "running", "lost", "done"]
    finally:
        controller.kill()
        controller.wait()


def test_slurm_tasks_are_judged_by_the_queue(tmp_path: Path) -> None:
    attempt = attempt_with(tmp_path / "r", ["9_0", "9_1", "9_2", "9_3"], executor="slurm")
    say(attempt, 0, state="running", job="9_0")
    say(attempt, 1, state="running", job="9_1")
    say(attempt, 2, state="failed", job="9_2", reason="boom")
    live = {"9_0": "RUNNING", "9_3": "PENDING"}
    assert [s["state"] for s in status.task_states(attempt, live)] == ["running", "lost", "failed", "queued"]
    # Nobody could be asked: the files are believed.
    assert [s["state"] for s in status.task_states(attempt, None)] == ["running", "running", "failed", "queued"]


def test_a_failure_shows_reason_last_line_and_path(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "caption-city"
    attempt = attempt_with(run, ["77"])
    say(attempt, 0, state="failed", job="77", reason="RuntimeError: out of memory")
    log = attempt.submitit / "77_0_log.out"
    log.write_text("loading\nCUDA error: out of memory\n")
    facts = status.collect(tmp_path / "data", tmp_path / "runs")
    text = status_text.render(facts)
    assert "RuntimeError: out of memory" in text
    assert "CUDA error: out of memory" in text
    assert "77_0_log.out" in text
    assert not status.healthy(facts)
    json.dumps(facts)


def test_training_progress_reads_like_a_sentence(tmp_path: Path) -> None:
    assert status.training_progress(tmp_path) == ""
    write_json(
        tmp_path / "progress.json", {"step": 120, "steps": 400, "loss": 0.12344, "samples_per_s": 21.52, "eta_s": 3725}
    )
    assert status.training_progress(tmp_path) == "step 120/400, loss 0.1234, 21.5 samples/s, 1:02:05 left"


def test_tasks_that_are_done_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 120
    jobs = [f"5_{i}" for i in range(count)]
    attempt = attempt_with(tmp_path / "many", jobs, executor="slurm")
    for index in range(count - 1):
        say(attempt, index, job=jobs[index], state="failed" if index == 7 else "done")
    expected = ["queued" if i == count - 1 else "failed" if i == 7 else "done" for i in range(count)]
    live = {jobs[-1]: "PENDING"}
    assert [state["state"] for state in status.task_states(attempt, live)] == expected
    opened: list[Path] = []
    read = status.read_json

    def noted(path: Path) -> object:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(status, "read_json", noted)
    assert [state["state"] for state in status.task_states(attempt, live)] == expected
    assert opened == [attempt.gathered, attempt.task_file(7)], "one that failed may be brought back"
    attempt.write(attempt.read() | {"jobs": ["6_0", *jobs[1:]]})
    say(attempt, 0, job="6_0", state="running")
    assert status.task_states(attempt, live | {"6_0": "RUNNING"})[0]["state"] == "running"
