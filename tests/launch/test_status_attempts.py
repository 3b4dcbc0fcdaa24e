"""A run with several attempts is seen as one: what runs, what failed, what a later attempt took over, what was never
queued."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from semiocity.files import write_json
from semiocity.launch import lock, logs, squeue, status, status_tasks, status_text, task
from semiocity.launch.runs import Attempt, new_attempt

SHARDS = 9


def attempt_of(run: Path, number: str, tasks: list[list[int]], **more: Any) -> Attempt:
    """An attempt of `tasks` and their merge, queued as array `number` and the job after it."""
    attempt = new_attempt(run)
    jobs = [f"{number}_{index}" for index in range(len(tasks))] + [str(int(number) + 1)]
    data: dict[str, Any] = {
        "kind": "stage",
        "job": {},
        "run": str(run),
        "dataset": str(run.parent),
        "column": "caption",
    }
    data |= {"revision": "abc", "executor": "slurm", "host": socket.gethostname(), "tasks": tasks}
    attempt.write({**data, "merge": len(tasks), "jobs": jobs, "live": [], **more})
    return attempt


def say(attempt: Attempt, index: int, state: str, **facts: Any) -> None:
    job = attempt.read()["jobs"][index]
    now = time.time()
    write_json(attempt.task_file(index), {"state": state, "job": job, "started": now - 60, "updated": now, **facts})


def queue(monkeypatch: pytest.MonkeyPatch, live: dict[str, str]) -> None:
    def look(jobs: Iterable[str]) -> dict[str, squeue.Seen]:
        return {job: squeue.Seen(live[job], "None") for job in jobs if job in live}

    monkeypatch.setattr(squeue, "look", look)


def shown(run: Path) -> dict[str, Any]:
    facts = status.collect(run.parent / "data", run.parent, [run])
    [found] = facts["runs"]
    json.dumps(found)
    return {**found, "busy": status.busy(facts), "healthy": status.healthy(facts), "text": status_text.render(facts)}


@pytest.fixture
def repaired(tmp_path: Path) -> tuple[Attempt, Attempt]:
    """Nine tasks and their merge, of which the first died and was queued again while the others were under way."""
    run = tmp_path / "caption-city"
    first = attempt_of(run, "101", [[index] for index in range(SHARDS)])
    say(first, 0, "failed", reason="RuntimeError: odd", cause="crash")
    say(first, 1, "running")
    live = first.read()["jobs"][1:]
    return first, attempt_of(run, "201", [[0]], live=live)


def test_what_an_earlier_attempt_still_does_is_seen(
    repaired: tuple[Attempt, Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = repaired
    live = {"101_1": "RUNNING", **{f"101_{index}": "PENDING" for index in range(2, SHARDS)}, "102": "PENDING"}
    queue(monkeypatch, {**live, "201_0": "PENDING", "202": "PENDING"})
    found = shown(first.run)
    assert found["tasks"] == {"queued": SHARDS - 2 + 1 + 2, "running": 1}
    assert found["work"]["of"] == SHARDS and found["busy"] and found["healthy"]
    assert found["jobs"] == ["101", "102", "201", "202"] and found["attempts"] == [1, 2]
    assert "attempts 1, 2 job 101, 102, 201, 202" in found["text"]
    # The second is over, the first goes on.
    say(second, 0, "done")
    say(second, 1, "failed", reason="8 shards are missing", cause="refused")
    queue(monkeypatch, live)
    found = shown(first.run)
    assert found["busy"] and found["tasks"]["running"] == 1 and found["work"]["done"] == 1


def test_what_failed_in_an_earlier_attempt_after_the_later_one_was_queued_is_seen(
    repaired: tuple[Attempt, Attempt], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = repaired
    queue(monkeypatch, {})
    say(second, 0, "done", done_shards=1)
    say(second, 1, "done")
    for index in range(1, SHARDS):
        say(first, index, "failed", reason=f"RuntimeError: {index}", cause="crash")
        (first.logs / f"101_{index}_0_log.out").write_text(f"the end of {index}\n")
    found = shown(first.run)
    assert not found["busy"] and not found["healthy"]
    assert found["tasks"] == {"done": 2, "failed": SHARDS - 1}, "its merge is the later attempt's affair"
    assert (found["work"]["done"], found["work"]["of"]) == (1, SHARDS)
    assert [(p["attempt"], p["task"]) for p in found["problems"]] == [(1, index) for index in range(1, SHARDS)]
    assert "attempt 1, task 1 failed: crashed: RuntimeError: 1" in found["text"]
    taken: dict[str, Any] = {"rank": None, "lines": 5, "follow": False}
    assert logs.show(first.run, task=None, attempt=None, **taken) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("caption-city, attempt 1, task 1 (failed)") and said[-1] == "the end of 1"
    assert logs.show(first.run, task=0, attempt=None, **taken) == 0, "a task by its number is the newest attempt's"
    assert "attempt 2, task 0 (done)" in capsys.readouterr().out
    # A third attempt takes over what the first left.
    third = attempt_of(first.run, "301", [[index] for index in range(1, SHARDS)])
    for index in range(SHARDS):
        say(third, index, "done", done_shards=1)
    found = shown(first.run)
    assert found["healthy"] and found["attempts"] == [3] and found["tasks"] == {"done": SHARDS}
    assert (found["work"]["done"], found["work"]["of"]) == (SHARDS, SHARDS)


def test_what_found_no_room_in_a_later_attempt_is_still_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(monkeypatch, {})
    first = attempt_of(tmp_path / "run", "101", [[0], [1], [2]])
    for index in range(3):
        say(first, index, "failed", reason="x", cause="crash")
    second = attempt_of(first.run, "201", [[0]], planned=3)
    say(second, 0, "done", done_shards=1)
    say(second, 1, "done")
    found = shown(first.run)
    assert [(p["attempt"], p["task"]) for p in found["problems"]] == [(1, 1), (1, 2)]
    # Made by a later attempt that had room, though another shard alone was missing by then.
    third = attempt_of(first.run, "301", [[2]])
    say(third, 0, "done", done_shards=1)
    say(third, 1, "done")
    found = shown(first.run)
    assert found["healthy"] and (found["work"]["done"], found["work"]["of"]) == (3, 3)


def test_another_revisions_tasks_count_while_they_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = attempt_of(tmp_path / "run", "101", [[0], [1]], revision="old")
    say(first, 0, "failed", reason="x", cause="crash")
    second = attempt_of(first.run, "201", [[0], [1]])
    for index in range(3):
        say(second, index, "done", done_shards=1)
    queue(monkeypatch, {"101_1": "RUNNING"})
    found = shown(first.run)
    assert found["busy"] and found["healthy"] and found["tasks"] == {"done": 3, "running": 1}
    assert (found["work"]["done"], found["work"]["of"]) == (2, 2)
    queue(monkeypatch, {})
    assert shown(first.run)["tasks"] == {"done": 3}


def test_waiting_shows_all_of_it_without_asking_the_queue(repaired: tuple[Attempt, Attempt]) -> None:
    first, second = repaired
    for index in range(1, 5):
        say(first, index, "done", done_shards=1)
    say(second, 0, "running")
    line = status.progress_line(first.run)
    assert line.startswith("  caption-city: 4/9 shards, 4/9 tasks done, 1 running, 4 queued, ") and line.endswith(
        " left"
    )


def test_a_merge_leaves_it_to_the_later_attempt_that_waits_behind_it(
    repaired: tuple[Attempt, Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = repaired
    told: list[str] = []
    monkeypatch.setattr(task.notices, "send", lambda url, body, timeout_s: told.append(body["state"]))
    monkeypatch.setenv("MY_HOOK", "http://127.0.0.1:9/hook")
    for attempt in repaired:
        attempt.write({**attempt.read(), "notify": {"env": "MY_HOOK"}})

    def merges(attempt: Attempt) -> str:
        return task.main(str(attempt.run), attempt.number, attempt.read()["merge"])

    # The dataset is not there, so that merging is refused.
    assert merges(first) == "done" and not told
    with pytest.raises(SystemExit):
        merges(second)
    assert told == ["failed"]
    with pytest.raises(SystemExit):
        merges(first)  # nobody comes after it any more
    assert told == ["failed", "failed"]


# ---------------------------------------------------------------- submissions that broke off


def test_what_a_submission_that_broke_off_left_is_never_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(monkeypatch, {"101_0": "RUNNING"})
    attempt = attempt_of(tmp_path / "run", "101", [[0], [1]], jobs=["101_0"])
    released, held = threading.Event(), threading.Event()

    def submitting() -> None:
        with lock.submission(attempt.run):
            held.set()
            released.wait(60)

    thread = threading.Thread(target=submitting)
    thread.start()
    held.wait(60)
    assert shown(attempt.run)["tasks"] == {"queued": 2, "running": 1}, "it is being submitted"
    released.set()
    thread.join()
    found = shown(attempt.run)
    assert found["tasks"] == {"lost": 2, "running": 1} and found["causes"] == {"never_queued": 2}
    assert "never queued: its submission broke off; the same command, or `semiocity retry RUN`" in found["text"]
    queue(monkeypatch, {})
    say(attempt, 0, "done", done_shards=1)
    assert not shown(attempt.run)["busy"] and not shown(attempt.run)["healthy"]
    later = attempt_of(attempt.run, "201", [[1]])
    say(later, 0, "done", done_shards=1)
    say(later, 1, "done")
    assert shown(attempt.run)["healthy"]


def test_a_lock_of_a_process_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = lock.lock_file(tmp_path)
    assert not lock.is_held(tmp_path)
    for pid, host, held in ((dead.pid, socket.gethostname(), False), (os.getpid(), socket.gethostname(), True)):
        write_json(path, {"host": host, "pid": pid})
        assert lock.is_held(tmp_path) is held
    write_json(path, {"host": "elsewhere", "pid": 1})
    assert lock.is_held(tmp_path)
    os.utime(path, (0, 0))
    assert not lock.is_held(tmp_path)
    path.write_text("")
    assert lock.is_held(tmp_path), "just being written"


def test_the_gates_of_a_pipeline_that_broke_off_do_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(monkeypatch, {})
    job = {"steps": [{"name": "pack"}, {"name": "caption"}]}
    attempt = attempt_of(
        tmp_path / "p", "101", [[], []], kind="pipeline", job=job, merge=None, jobs=["", ""], column="", revision=""
    )
    write_json(attempt.task_file(0), {"state": "done", "step": "pack", "job": "", "said": "queued: 5"})
    found = shown(attempt.run)
    assert not found["busy"] and not found["healthy"]
    assert "caption      never queued" in found["text"] and "pack         queued: 5" in found["text"]


def test_a_local_run_whose_command_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    who = {"pid": process.pid, "started": lock.process(process.pid)}
    attempt = attempt_of(tmp_path / "run", "101", [[0]], executor="local", jobs=[], process=who)
    try:
        assert {state["state"] for state in status_tasks.task_states(attempt)} == {"queued"}
    finally:
        process.kill()
        process.wait()
    assert {state["state"] for state in status_tasks.task_states(attempt)} == {"lost"}
    attempt.cancelled.touch()
    assert {state["state"] for state in status_tasks.task_states(attempt)} == {"cancelled"}
