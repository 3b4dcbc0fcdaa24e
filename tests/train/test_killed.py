"""Killed without a word, in the middle of a step or of a checkpoint: the next attempt loses steps, never the run."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import STEPS, checkpoint, differing, gan, history
from train_ranks import Ranks, train

TRAIN = """
import json, sys
from pathlib import Path
import train_ranks
from semiocity.launch.preempt import StopFlag
from semiocity.launch.world import World
from semiocity.train.loop import run
rank, port, settings, folder, dataset = sys.argv[1:]
stop = StopFlag().install()
job = train_ranks.job_of(Path(dataset), **json.loads(settings))
world = World(int(rank), 2, int(rank), 1, "127.0.0.1", int(port), "7", 0)
finished = run(job, Path(folder), Path(dataset), world, stop)
sys.exit(0 if finished else 85)
"""
PATIENCE_S = 240


def start(settings: dict[str, Any], run: Path, dataset: Path) -> list[subprocess.Popen[bytes]]:
    """Both ranks as processes of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(rank), str(port), json.dumps(settings), str(run), str(dataset)],
            env=environment,
        )
        for rank in range(2)
    ]


def wait_for(what: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "nothing happened"
        assert all(process.poll() is None for process in processes), "a rank ended early"
        time.sleep(0.02)


@pytest.fixture
def alive() -> Any:
    """Processes to end when the test is over."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_killed_while_saving_then_asked_to_stop(
    ranks: Ranks, city: Path, tmp_path: Path, chance: random.Random, alive: list[subprocess.Popen[bytes]]
) -> None:
    """SIGKILL to both ranks while a checkpoint is written beside the training, then USR2 to one; the third attempt ends
    as if nothing had happened."""
    fp32 = {"stage": 1, "precision": "fp32"}
    folder = tmp_path / "hurt" / "checkpoints"

    def steps() -> int:
        return (tmp_path / "hurt" / "metrics.jsonl").read_text().count("\n")

    # One rank saves slowly, which leaves time to kill it in the middle, when the steps that follow are done.
    slow = gan(fp32, checkpoint_every=2, rehearse={"slow_save_s": [0, 2.0]})
    alive += start(slow, tmp_path / "hurt", city)
    wait_for(lambda: (folder / ".step-00000004.tmp").exists() and steps() == STEPS, alive)
    assert (folder / "step-00000002").exists()
    for process in alive:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "step-00000004").exists()

    second = start(gan(fp32, checkpoint_every=2, rehearse={"slow_step_s": 0.5}), tmp_path / "hurt", city)
    alive += second
    wait_for(lambda: len(history(tmp_path / "hurt")) == 2, second)
    second[chance.randrange(2)].send_signal(signal.SIGUSR2)
    assert [process.wait(PATIENCE_S) for process in second] == [85, 85]
    assert not (folder / ".step-00000004.tmp").exists()

    settings = gan(fp32, checkpoint_every=2)
    assert ranks.call(train, settings, tmp_path / "hurt", city, 0, 0) == [True, True]
    assert ranks.call(train, settings, tmp_path / "whole", city, 0, 0) == [True, True]
    firsts = [attempt["first_step"] for attempt in history(tmp_path / "hurt")]
    assert firsts[:2] == [0, 2]
    assert firsts[2] > 2
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "hurt")) == []
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "hurt")]
    assert lines[0] == lines[1]
