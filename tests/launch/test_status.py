"""`semiocity status` tells the truth from files, for jobs that ended well, badly, or without a word."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from semiocity.files import write_json
from semiocity.launch import progress, squeue, status, status_tasks, status_text
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
        assert [state["state"] for state in status_tasks.task_states(attempt)] == ["lost", "running", "lost", "done"]
    finally:
        controller.kill()
        controller.wait()


def test_slurm_tasks_are_judged_by_the_queue(tmp_path: Path) -> None:
    attempt = attempt_with(tmp_path / "r", ["9_0", "9_1", "9_2", "9_3"], executor="slurm")
    say(attempt, 0, state="running", job="9_0")
    say(attempt, 1, state="running", job="9_1")
    say(attempt, 2, state="failed", job="9_2", reason="boom")
    live = {"9_0": "RUNNING", "9_3": "PENDING"}
    assert [s["state"] for s in status_tasks.task_states(attempt, live)] == ["running", "lost", "failed", "queued"]
    # Nobody could be asked: the files are believed.
    assert [s["state"] for s in status_tasks.task_states(attempt, None)] == ["running", "running", "failed", "queued"]


def test_a_failure_shows_reason_last_line_and_path(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "caption-city"
    attempt = attempt_with(run, ["77"])
    say(attempt, 0, state="failed", job="77", reason="RuntimeError: out of memory")
    log = attempt.logs / "77_0_log.out"
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
    assert [state["state"] for state in status_tasks.task_states(attempt, live)] == expected
    opened: list[Path] = []
    read = status_tasks.read_json

    def noted(path: Path) -> object:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(status_tasks, "read_json", noted)
    assert [state["state"] for state in status_tasks.task_states(attempt, live)] == expected
    assert opened == [attempt.gathered, attempt.task_file(7)], "one that failed may be brought back"
    attempt.write(attempt.read() | {"jobs": ["6_0", *jobs[1:]]})
    say(attempt, 0, job="6_0", state="running")
    assert status_tasks.task_states(attempt, live | {"6_0": "RUNNING"})[0]["state"] == "running"


def test_progress_causes_and_gpu_hours(tmp_path: Path) -> None:
    asked = {"resources": {"nodes": 1, "gpus_per_node": 4}}
    run = tmp_path / "runs" / "caption-city"
    jobs = ["9_0", "9_1", "9_2", "9_3", "10"]
    tasks = [[0, 1], [2, 3], [4, 5], [6, 7]]
    attempt = attempt_with(run, jobs, executor="slurm", tasks=tasks, merge=4, **asked)
    now = time.time()
    say(attempt, 0, state="done", job="9_0", done_shards=2, started=now - 3600, updated=now - 1800)
    say(attempt, 1, state="failed", job="9_1", started=now - 3600, updated=now - 3600, reason="ValueError: x")
    half = {"done_shards": 1, "rows": 50, "of": 100, "rows_per_s": 2.5, "spent_s": 1800.0}
    say(attempt, 2, state="stopped", job="9_2", reason="SIGUSR2", started=now, updated=now)
    say(attempt, 3, state="running", job="9_3", started=now - 1800, updated=now, restart=1, **half)
    (attempt.folder / "ends").mkdir()
    (attempt.folder / "ends" / "9_1.0").write_text("cause=gpu_out_of_memory\nreason=too large\n")
    states = status_tasks.task_states(attempt, {"9_3": "RUNNING", "10": "PENDING"})
    assert [state["state"] for state in states] == ["done", "failed", "lost", "running", "queued"]
    assert [state["cause"] for state in states] == ["", "gpu_out_of_memory", "time_limit", "", ""]
    work = progress.measure(tasks, states, now)
    assert (work["done"], work["of"], work["rows_per_s"]) == (3, 8, 2.5)
    # Three shards and a half of eight in an hour.
    assert work["left_s"] == pytest.approx(4.5 / 3.5 * 3600, abs=2)
    assert progress.gpu_hours(attempt.read(), states) == pytest.approx(4 * 1.5, abs=0.01)
    attempt.cancelled.touch()
    assert [s["state"] for s in status_tasks.task_states(attempt, {})] == ["done", "failed"] + ["cancelled"] * 3


def test_twenty_thousand_tasks_are_looked_at_with_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000
    jobs = [f"5_{index}" for index in range(count)]
    attempt = attempt_with(tmp_path / "runs" / "many", jobs, executor="slurm")
    done = {str(i): {"state": "done", "job": jobs[i], "started": 0.0, "updated": 1.0} for i in range(count - 100)}
    write_json(attempt.packed, done)
    for index in range(count - 100, count - 50):
        say(attempt, index, state="running", job=jobs[index], started=time.time(), updated=time.time())
    asked: list[list[str]] = []

    def queue(wanted: Iterable[str]) -> dict[str, squeue.Seen]:
        asked.append(list(wanted))
        return dict.fromkeys(asked[-1], squeue.Seen("RUNNING", "None"))

    monkeypatch.setattr(squeue, "look", queue)
    opened: list[Path] = []
    read = status_tasks.read_json

    def noted(path: Path) -> dict[str, Any]:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(status_tasks, "read_json", noted)
    [run] = status.collect(tmp_path / "data", tmp_path / "runs")["runs"]
    assert run["tasks"] == {"done": count - 100, "running": 100}
    assert len(asked) == 1 and len(asked[0]) == 100
    assert len(opened) < 60
    assert len(status_text.render(status.collect(tmp_path / "data", tmp_path / "runs")).splitlines()) < 10


def test_a_screen_is_as_large_as_the_terminal() -> None:
    text = "\n".join(f"line {number} " + "x" * 100 for number in range(50)) + "\nlast"
    drawn = status_text.screen(text, (40, 12))
    lines = drawn.removeprefix("\033[H").removesuffix("\033[J").replace("\033[K", "").splitlines()
    assert len(lines) == 11 and max(map(len, lines)) <= 40
    assert lines[-1] == "last" and lines[0].endswith("…")
    assert sum(line.startswith("line") for line in lines) + int(re.findall(r"… (\d+) more", drawn)[0]) == 50


def test_watching_without_a_terminal_is_plain_and_ends_with_the_work(tmp_path: Path) -> None:
    attempt = attempt_with(tmp_path / "runs" / "r", ["1"], executor="local", tasks=[[0]])
    say(attempt, 0, state="done", job="1")
    command = [sys.executable, "-m", "semiocity", "status", "r", "--watch", "--every", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "\033" not in done.stdout
    assert "run r (stage of city, attempt 1): 1 done" in done.stdout
    wrong = subprocess.run([*command[:4], "q"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and "no such run; there are: r" in wrong.stderr
