"""The thread that notices a training that stands still: in processes of their own, since it ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from semiocity import ranks
from semiocity.launch.first_cause import first_cause
from semiocity.launch.runs import Attempt
from semiocity.launch.world import World

PATIENCE_S = 300
RANK = """
import sys, time
from pathlib import Path
from semiocity import ranks
from semiocity.launch.world import World
from semiocity.train import watchdog
from semiocity.train.options import HangOptions
rank, folder, restart, requeues, deed, grace_s = sys.argv[1:]
watchdog.GRACE_S, watchdog.POLL_S, watchdog.IDLE_S = float(grace_s), 0.05, 0.3
world = World(int(rank), 2, 0, 1, "127.0.0.1", 10_000, "7", int(restart), Path(folder))
def stand_still():
    while True:
        time.sleep(0.1)
def told(reason, again):
    (Path(folder) / f"told-{rank}").write_text(f"{again} {reason}")
    raise OSError("what listens is broken")
options = HangOptions(times=5, at_least_s=1.0, requeues=int(requeues))
with ranks.recorded(world), watchdog.Watchdog(world, options, told) as watch:
    for _ in range(5):
        time.sleep(0.05)
        watch.beat()
    print("at work", flush=True)
    if deed == "pause":
        with watch.paused("saving"):
            time.sleep(3)
        watch.beat()
    elif deed == "fail":
        raise ValueError("no such colour")
    else:
        stand_still()
"""


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt(tmp_path, 1)
    made.requeue.mkdir(parents=True)
    return made


def folder(attempt: Attempt, restart: int = 0) -> Path:
    return ranks.folder_of(attempt.folder, "7", restart)


def start(
    attempt: Attempt, rank: int, deed: str = "stand still", restart: int = 0, requeues: int = 3, grace_s: float = 3
) -> subprocess.Popen[str]:
    arguments = [str(rank), str(folder(attempt, restart)), str(restart), str(requeues), deed, str(grace_s)]
    process = subprocess.Popen([sys.executable, "-c", RANK, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


def test_ranks_that_stand_still_leave_stacks_and_ask_to_come_back(attempt: Attempt) -> None:
    processes = [start(attempt, rank, grace_s=PATIENCE_S) for rank in (0, 1)]
    assert [process.wait(PATIENCE_S) for process in processes] == [85, 85]
    assert attempt.requeue_file("7", 0).read_text() == "hung\n", "counted as such, not as a preemption"
    stacks = sorted(folder(attempt).glob("*.stacks"))
    assert [path.name for path in stacks] == ["0000.stacks", "0001.stacks"]
    assert "stand_still" in stacks[0].read_text(), "the main thread's place is in it"
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank) == ("hung", None)


def test_a_stopped_rank_is_ended_by_the_other_and_named(attempt: Attempt) -> None:
    other = start(attempt, 1)
    other.send_signal(signal.SIGSTOP)
    assert start(attempt, 0).wait(PATIENCE_S) == 85
    assert other.wait(PATIENCE_S) == -signal.SIGKILL
    assert attempt.requeue_file("7", 0).exists()
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank) == ("hung", 1)


def test_it_comes_back_as_often_as_allowed(attempt: Attempt) -> None:
    for restart, back in ((0, True), (1, False)):
        processes = [start(attempt, rank, restart=restart, requeues=1, grace_s=PATIENCE_S) for rank in (0, 1)]
        assert [process.wait(PATIENCE_S) for process in processes] == [85, 85]
        assert attempt.requeue_file("7", restart).exists() == back
        for rank in (0, 1):
            said = (folder(attempt, restart) / f"told-{rank}").read_text()
            assert said.startswith(f"{back} no step for "), "whoever listens knows whether it is for good"


def test_saving_takes_its_time(attempt: Attempt) -> None:
    processes = [start(attempt, rank, "pause") for rank in (0, 1)]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0]
    assert {record["state"] for record in ranks.read(folder(attempt)).values()} == {"ended"}
    assert first_cause(attempt) is None


def test_a_rank_follows_one_that_failed(attempt: Attempt) -> None:
    """Even where its transport does not notice."""
    waiting = start(attempt, 0, requeues=3)
    assert start(attempt, 1, "fail").wait(PATIENCE_S) == 1
    waiting.wait(PATIENCE_S)
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank, cause.reason) == ("failed", 1, "ValueError: no such colour")


def test_a_process_of_another_table_is_never_taken_for_gone(attempt: Attempt) -> None:
    """A container may number processes by itself: what is not seen there may well live."""
    world = World(0, 2, 0, 1, "127.0.0.1", 10_000, "7", 0, folder(attempt))
    ranks.write(world, "running")
    ranks.write(replace(world, rank=1), "running", pid=2**22 + 1)
    records = ranks.read(folder(attempt))
    mine, gone = records[0], records[1]
    assert not ranks.ended(mine)
    assert ranks.ended(gone)
    assert not ranks.ended({**gone, "processes": f"{os.uname().nodename} pid:[1]"})
    assert time.time() - mine["time"] < 3600
