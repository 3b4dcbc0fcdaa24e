"""Ranks of one restart meet; ranks of another one never join them."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from semiocity import ranks
from semiocity.errors import UserError
from semiocity.launch.world import World, port_of
from semiocity.train.rendezvous import meet


@pytest.fixture
def first(tmp_path: Path) -> World:
    """Rank 0 of two, of a job that never ran before."""
    job = f"test-{time.monotonic_ns()}"
    folder = ranks.folder_of(tmp_path / "attempts" / "0001", job, 1)
    return World(0, 2, 0, 1, "127.0.0.1", port_of(job, 1), job, 1, folder)


def other(first: World) -> World:
    return replace(first, rank=1, local_rank=1)


def test_both_find_the_same_store(first: World) -> None:
    with ThreadPoolExecutor() as pool:
        late = pool.submit(meet, other(first), 60.0)
        store, port = meet(first, 60.0)
        theirs, their_port = late.result()
    assert port == their_port == first.master_port
    store.set("key", "value")
    assert theirs.get("key") == b"value"


def test_a_port_that_is_taken_is_passed_over_by_all(first: World) -> None:
    with (
        socket.create_server(("", first.port(0))),
        socket.create_server(("", first.port(1))),
        ThreadPoolExecutor() as pool,
    ):
        late = pool.submit(meet, other(first), 60.0)
        store, port = meet(first, 60.0)
        assert late.result()[1] == port == first.port(2)
        store.set("key", "value")
    assert len({first.port(attempt) for attempt in range(20)}) == 20
    assert [first.port(n) for n in range(20)] == [other(first).port(n) for n in range(20)], "no talk is needed"
    assert all(10_000 <= first.port(attempt) < 20_000 for attempt in range(20))


def test_a_rank_of_the_past_refuses_itself(first: World) -> None:
    """It outlived a preemption; its job has come back since."""
    store, _ = meet(first, 60.0)
    before = ranks.folder_of(first.folder.parents[1], first.job_id, 0) if first.folder else None
    for rank in (0, 1):
        old = replace(first, rank=rank, restart=0, folder=before)
        with pytest.raises(ranks.Superseded, match=r"restart 1 of job .* has begun, this is restart 0"):
            meet(old, 60.0)
    assert before is not None
    assert not before.exists(), "it leaves nothing"
    assert store.num_keys() >= 1


def test_a_rank_of_the_past_that_waits_is_told(first: World) -> None:
    """It waits for a rank 0 that never comes; then the next restart begins."""
    assert first.folder is not None
    old = replace(other(first), restart=0, folder=ranks.folder_of(first.folder.parents[1], first.job_id, 0))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(meet, old, 60.0)
        time.sleep(0.5)
        assert not waiting.done()
        meet(first, 60.0)
        with pytest.raises(ranks.Superseded):
            waiting.result()


def test_the_store_of_others_is_not_joined(first: World, tmp_path: Path) -> None:
    """The ports of two jobs coincide: whoever comes to the wrong store leaves it as it was."""
    store, port = meet(first, 60.0)
    stranger = replace(other(first), job_id="stranger", folder=tmp_path / "other" / "ranks" / "stranger.0", restart=0)
    assert stranger.folder is not None
    stranger.folder.mkdir(parents=True)
    (stranger.folder / ranks.RENDEZVOUS).write_text(json.dumps({"port": port, "nonce": "n"}))
    keys = store.num_keys()
    with pytest.raises(UserError, match=f"127.0.0.1:{port} belongs to other ranks"):
        meet(stranger, 2.0)
    assert store.num_keys() == keys


def test_a_new_attempt_ends_what_an_old_one_left(first: World) -> None:
    """The job was cancelled, a rank on a node that cannot be reached goes on, the user submits again."""
    assert first.folder is not None
    meet(first, 60.0)
    ranks.refuse_superseded(first)
    newer = first.folder.parents[2] / "0002"
    newer.mkdir()
    ranks.refuse_superseded(first)  # submitted, not begun
    ranks.folder_of(newer, "9", 0).mkdir(parents=True)
    with pytest.raises(ranks.Superseded, match="attempt 0002 at this run has begun"):
        ranks.refuse_superseded(first)
