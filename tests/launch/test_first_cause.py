"""Of everything that ranks say at the end of a job, what comes first is shown."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from semiocity import ranks
from semiocity.launch.first_cause import first_cause
from semiocity.launch.runs import Attempt
from semiocity.launch.world import World

FOLLOWERS = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4210",
    "[enforce fail at pair.cc:446] writev [10.0.0.2]:40122: Connection reset by peer",
    "NCCL error: remote process exited or there was a network error, NCCL version 2.28",
    "NCCL communicator was aborted on rank 3.",
    "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    "Broken pipe",
]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt(tmp_path, 1)
    made.logs.mkdir(parents=True)
    for rank in range(4):
        (made.logs / f"7_{rank}_log.out").write_text(f"log of rank {rank}\n")
    return made


def place(attempt: Attempt, rank: int, restart: int = 0) -> World:
    return World(rank, 4, rank, 1, "n1", 10_000, "7", restart, ranks.folder_of(attempt.folder, "7", restart))


def fail(world: World, error: BaseException) -> None:
    with pytest.raises(type(error)), ranks.recorded(world):
        raise error


@pytest.mark.parametrize("text", FOLLOWERS)
def test_followers_are_no_cause(attempt: Attempt, text: str) -> None:
    fail(place(attempt, 0), RuntimeError(text))
    time.sleep(0.002)
    fail(place(attempt, 3), ValueError("the palette has no colour 7"))
    fail(place(attempt, 1), RuntimeError(text))
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank, cause.reason) == ("failed", 3, "ValueError: the palette has no colour 7")
    assert cause.log == attempt.logs / "7_3_log.out"


def test_the_earliest_failure_wins(attempt: Attempt) -> None:
    fail(place(attempt, 2), OSError("no space left on device"))
    time.sleep(0.002)
    fail(place(attempt, 0), OSError("no space left on device, later"))
    cause = first_cause(attempt)
    assert cause is not None
    assert cause.rank == 2


def test_a_rank_that_vanished_is_named_by_what_it_did_not_say(attempt: Attempt) -> None:
    for rank in (0, 1, 3):
        fail(place(attempt, rank), RuntimeError(FOLLOWERS[0]))
    ranks.write(place(attempt, 2), "running")
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank) == ("killed", 2)


def test_srun_says_who_was_killed(attempt: Attempt) -> None:
    """All ranks are ended by srun before they can say anything."""
    for rank in range(4):
        ranks.write(place(attempt, rank), "running")
    (attempt.logs / "7_0_log.out").write_text(
        "step 3\nsrun: error: gpu07: task 3: Out Of Memory\nsrun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
        "srun: error: gpu06: tasks 0-2: Terminated\n"
    )
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank, cause.host) == ("killed", 3, "gpu07")
    assert "Out Of Memory" in cause.reason


def test_a_hang_names_the_rank_without_stacks(attempt: Attempt) -> None:
    ranks.write(place(attempt, 2), "running")
    where = "step_with (zero.py:9)"
    for rank in (0, 1, 3):
        ranks.write(place(attempt, rank), "hung", "no step for 700 s, the limit is 600 s", where=where)
        ranks.stacks_file(ranks.folder_of(attempt.folder, "7", 0), rank).write_text("Thread …")
    cause = first_cause(attempt)
    assert cause is not None
    assert (cause.kind, cause.rank, len(cause.stacks)) == ("hung", 2, 3)


def test_the_latest_restart_counts_and_success_has_no_cause(attempt: Attempt) -> None:
    fail(place(attempt, 0), ValueError("at first"))
    for rank in range(4):
        with ranks.recorded(place(attempt, rank, restart=1)):
            pass
    assert first_cause(attempt) is None
    before = first_cause(attempt, restart=0)
    assert before is not None
    assert before.reason == "ValueError: at first"
    assert first_cause(replace(attempt, number=2)) is None
