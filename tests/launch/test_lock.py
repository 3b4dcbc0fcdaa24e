"""The submission lock, between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.launch import lock

HOLD = """
import sys, time
from pathlib import Path
from semiocity.launch import lock
run, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
with lock.submission(run):
    with log.open("a") as file: file.write("in\\n")
    time.sleep(seconds)
    with log.open("a") as file: file.write("out\\n")
"""


def hold(run: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(run), str(log), str(seconds)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(log: Path, text: str) -> None:
    end = time.monotonic() + 60
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_processes_started_together_hold_it_one_after_the_other(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    processes = [hold(run, log, 0.3) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert log.read_text().split() == ["in", "out"] * 3
    assert not run.exists(), "an empty run folder is not left behind"


def test_a_dead_holders_lock_is_taken_at_once(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = hold(run, log, 600)
    wait_for(log, "in")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.lock_file(run).exists()
    with lock.submission(run, patience_s=5):
        pass
    assert not lock.lock_file(run).exists()


def test_the_holder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = hold(run, log, 600)
    try:
        wait_for(log, "in")
        with pytest.raises(UserError, match=f"process {process.pid}"), lock.submission(run, patience_s=0.1):
            raise AssertionError("entered")
        assert f"process {process.pid}) is submitting" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def test_a_process_is_told_from_a_later_one_of_the_same_number() -> None:
    me = lock.myself()
    assert lock.is_alive(me)
    assert not lock.is_alive({**me, "started": "1"})
    child = subprocess.Popen([sys.executable, "-c", ""])
    facts = {"pid": child.pid, "started": lock.process(child.pid)}
    child.wait()
    assert not lock.is_alive(facts)
    assert not lock.is_alive({}) and lock.process(os.getpid()) is not None
