"""Few files: what is done goes into two files, whatever failed keeps its own, and nobody sees a gap."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from semiocity import ranks
from semiocity.files import write_json
from semiocity.launch import compact, status_tasks
from semiocity.launch.runs import Attempt, new_attempt

STATES = {0: "done", 1: "failed", 2: "done", 3: "done", 4: "running"}


def attempt_of(run: Path, states: dict[int, str]) -> Attempt:
    attempt = new_attempt(run)
    jobs = [f"7_{index}" for index in states]
    attempt.write({"kind": "stage", "executor": "slurm", "tasks": [[i] for i in states], "merge": None, "jobs": jobs})
    for index, state in states.items():
        write_json(attempt.task_file(index), {"state": state, "job": jobs[index], "done_shards": 1})
        (attempt.logs / f"{jobs[index]}_0_log.out").write_text(
            f"task {index}\n==> no head <==\nended" + "\n" * (index % 2)
        )
    return attempt


def test_done_is_packed_and_the_rest_stays(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path, STATES)
    before = status_tasks.task_states(attempt)
    assert compact.compact(attempt) == 3
    assert sorted(path.name for path in (attempt.folder / "tasks").iterdir()) == ["0001.json", "0004.json"]
    assert sorted(path.name for path in attempt.logs.iterdir()) == ["7_1_0_log.out", "7_4_0_log.out", "done.log"]
    assert status_tasks.task_states(attempt) == before
    assert compact.packed_log(attempt, "7_2") == "task 2\n==> no head <==\nended\n"
    assert compact.packed_log(attempt, "7_1") == ""
    # More is done later: added, nothing lost.
    write_json(attempt.task_file(4), {"state": "done", "job": "7_4"})
    assert compact.compact(attempt) == 1 and compact.compact(attempt) == 0
    assert set(compact.packed_states(attempt)) == {0, 2, 3, 4}
    assert "task 0" in compact.packed_log(attempt, "7_0") and "task 4" in compact.packed_log(attempt, "7_4")


def test_what_killed_tasks_left_half_written_goes(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path, STATES)
    meeting = ranks.folder_of(attempt.folder, "7_1", 0)
    meeting.mkdir(parents=True)
    for left in (attempt.folder / "tasks" / ".0001.json.x1.tmp", meeting / ".rendezvous.json.x2.tmp"):
        left.touch()
    compact.compact(attempt)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_folder_of_logs_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = attempt_of(tmp_path, dict.fromkeys(range(40), "done"))
    for rank in (10, 2):
        (attempt.logs / f"7_3_{rank}_log.out").write_text(f"rank {rank}\n")
    listed: list[str] = []
    look = os.listdir

    def noted(folder: Path) -> list[str]:
        listed.append(str(folder))
        return look(folder)

    monkeypatch.setattr(os, "listdir", noted)
    monkeypatch.setattr(os, "scandir", lambda folder: pytest.fail(f"{folder} is listed for each task"))
    monkeypatch.setattr(compact.Path, "iterdir", lambda folder: map(folder.joinpath, look(folder)))
    assert compact.compact(attempt) == 40
    assert listed.count(str(attempt.logs)) == 1
    assert [compact.packed_log(attempt, "7_3", rank) for rank in (2, 10)] == ["rank 2\n", "rank 10\n"]
    assert [path.name for path in map(Path, look(attempt.logs))] == [compact.DONE_LOG]


def test_whoever_looks_meanwhile_sees_every_task(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path, dict.fromkeys(range(120), "done"))
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(sum(state["state"] == "done" for state in status_tasks.task_states(attempt)))

    watcher = threading.Thread(target=look)
    watcher.start()
    compact.compact(attempt)
    over.set()
    watcher.join()
    assert set(seen) == {120}
