"""`semiocity logs` shows what a person would have searched for."""

import os
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch import logs
from semiocity.launch.runs import Attempt, new_attempt

TAKEN = {"task": None, "rank": None, "attempt": None, "lines": 5, "follow": False}


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = new_attempt(tmp_path / "runs" / "train")
    made.write({"kind": "train", "tasks": [[], []], "jobs": ["7", "8"], "executor": "local", "host": "elsewhere"})
    write_json(made.task_file(0), {"state": "done", "job": "7"})
    write_json(
        made.task_file(1), {"state": "failed", "job": "8", "cause": "crash", "reason": "RuntimeError: peer closed"}
    )
    return made


def write(attempt: Attempt, job: str, rank: int, text: str, age_s: int) -> None:
    log = attempt.logs / f"{job}_{rank}_log.out"
    log.write_text(text)
    at = log.stat().st_mtime - age_s
    os.utime(log, (at, at))


def test_the_failing_tasks_first_rank_comes_first(attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    write(attempt, "7", 0, "fine\n", 100)
    write(attempt, "8", 0, "Traceback (most recent call last):\nRuntimeError: peer closed\n", 5)
    write(attempt, "8", 1, "working\n", 60)
    write(attempt, "8", 2, "Traceback (most recent call last):\nValueError: the cause\n", 30)
    write(attempt, "80", 0, "another job's\n", 90)
    assert logs.show(attempt.run, **TAKEN) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("train, attempt 1, task 1 (failed): crashed: RuntimeError: peer closed; ")
    assert out[2].endswith("8_2_log.out <==")
    assert out[-1] == "ValueError: the cause"
    assert logs.show(attempt.run, **TAKEN | {"rank": 1}) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "working"
    assert logs.show(attempt.run, **TAKEN | {"task": 0}) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fine"
    with pytest.raises(UserError, match="no log of rank 9; ranks: 0 to 2"):
        logs.show(attempt.run, **TAKEN | {"rank": 9})
    with pytest.raises(UserError, match="no task 5; attempt 1 has 0 to 1"):
        logs.show(attempt.run, **TAKEN | {"task": 5})
    with pytest.raises(UserError, match="no attempt 3; there are 1"):
        logs.show(attempt.run, **TAKEN | {"attempt": 3})


def test_what_ranks_noted_of_themselves_decides(attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    for rank, age in ((0, 60), (1, 5)):
        write(attempt, "8", rank, f"Traceback (most recent call last):\nError: of {rank}\n", age)
    for restart, first in ((0, 0), (1, 1)):
        for rank in (0, 1):
            state = "failed" if rank == first else "follower"
            facts = {"rank": rank, "ranks": 2, "state": state, "time": 5.0 - rank, "host": "n2", "reason": f"of {rank}"}
            write_json(attempt.folder / "ranks" / f"8.{restart}" / f"{rank:04d}.json", facts)
    assert logs.show(attempt.run, **TAKEN) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "first: rank 1 on n2: of 1"
    assert out[-1] == "Error: of 1"


def test_the_end_of_a_huge_log_is_read_alone(attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    write(attempt, "8", 0, "x" * 3_000_000 + "\nTraceback (most recent call last):\nthe end\n", 0)
    assert logs.show(attempt.run, **TAKEN) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "the end"


def test_following_ends_with_the_task(attempt: Attempt) -> None:
    log = attempt.logs / "8_0_log.out"
    log.write_text("before\n")
    looks: list[str] = []

    def live() -> bool:
        looks.append("look")
        with log.open("a") as file:
            file.write(f"line {len(looks)}\n")
        return len(looks) < 3

    said = "".join(logs._follow(log, live, pause_s=0.01, ask_s=0.0))
    assert said == "line 1\nline 2\nline 3\n"
