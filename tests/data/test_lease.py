"""Leases, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from semiocity.data import lease as lease_module
from semiocity.data.lease import Owner, lease

ELSEWHERE = Owner("1", 0, 0, "another-host", 1)

HOLD = """
import sys
from pathlib import Path
from semiocity.data.lease import Owner, lease
with lease(Path(sys.argv[1]), Owner.here(sys.argv[2], int(sys.argv[3]), 0)) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def holder(path: Path, job: str = "9", restart: int = 0) -> subprocess.Popen[str]:
    """A process that holds the lease until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path), job, str(restart)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    with lease(path, ELSEWHERE) as first, lease(path, Owner("2", 0, 0, "third", 1)) as second:
        assert (first, second) == (True, False)
    assert list(tmp_path.iterdir()) == []
    with lease(path, ELSEWHERE) as again:
        assert again


def test_who_was_refused_does_not_release(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    with lease(path, ELSEWHERE):
        with lease(path, Owner("2", 0, 0, "third", 1)):
            pass
        assert path.exists()


def test_a_living_process_keeps_it_and_a_killed_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    process = holder(path)
    try:
        with lease(path, Owner.here("10")) as held:
            assert not held
        with lease(path, Owner.here("9", restart=0)) as held:
            assert not held
    finally:
        process.kill()
        process.communicate()
    assert path.exists()
    with lease(path, Owner.here("10")) as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_the_restarted_job_takes_over_from_its_own_past(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    past = Owner("77", 1, 3, "another-host", 1)
    for owner, expected in (
        (Owner("77", 1, 3, "here", 1), False),  # the same attempt
        (Owner("77", 2, 4, "here", 1), False),  # another task
        (Owner("78", 2, 3, "here", 1), False),  # another job
        (Owner("77", 0, 3, "here", 1), False),  # an older attempt
        (Owner("77", 2, 3, "here", 1), True),
    ):
        path.write_text(json.dumps({**vars(past), "nonce": "x"}))
        with lease(path, owner) as held:
            assert held is expected, owner
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("content", ['{"job": "1"', "", "[]"])
def test_what_cannot_be_read_is_left_until_it_is_old(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.lease"
    path.write_text(content)
    with lease(path, ELSEWHERE) as held:
        assert not held
    os.utime(path, (time.time() - 3600,) * 2)
    with lease(path, ELSEWHERE) as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_the_holder_touches_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    with lease(path, ELSEWHERE, beat_s=0.02):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
        with lease(path, Owner("2", 0, 0, "third", 1), stale_s=60) as held:
            assert not held


def test_a_lease_that_was_lost_is_not_released(tmp_path: Path) -> None:
    """A holder that slept for too long wakes up to somebody else's lease, and leaves it."""
    path = tmp_path / "a.lease"
    with lease(path, ELSEWHERE):
        os.utime(path, (0, 0))
        other = lease(path, Owner("2", 0, 0, "third", 1))
        assert other.__enter__()
    assert path.exists()
    other.__exit__(None, None, None)
    assert not path.exists()


def test_a_judgement_that_is_out_of_date_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between judging a lease and removing it, another process takes it over: that one keeps it."""
    path = tmp_path / "a.lease"
    path.write_text(json.dumps({**vars(Owner("0", 0, 0, Owner.here().host, dead_pid())), "nonce": "x"}))
    other = lease(path, Owner.here("faster"))
    judge = lease_module._superseded

    def slow_judge(text: str, owner: Owner, gone: Callable[[Owner], bool]) -> bool:
        answer = judge(text, owner, gone)
        monkeypatch.setattr(lease_module, "_superseded", judge)
        if answer:
            assert other.__enter__()
        return answer

    monkeypatch.setattr(lease_module, "_superseded", slow_judge)
    with lease(path, Owner.here("slower")) as held:
        assert not held
    assert "faster" in path.read_text()
    other.__exit__(None, None, None)


def test_one_process_at_a_time_removes_a_lease(tmp_path: Path) -> None:
    path, guard = tmp_path / "a.lease", tmp_path / ".a.lease.takeover.tmp"
    path.write_text(json.dumps({**vars(Owner("0", 0, 0, Owner.here().host, dead_pid())), "nonce": "x"}))
    guard.touch()
    with lease(path, Owner.here()) as held:
        assert not held, "another is just removing it"
    os.utime(guard, (0, 0))
    with lease(path, Owner.here()) as held:
        assert held, "the other died while it was removing it"
    assert list(tmp_path.iterdir()) == []


CONTEND = """
import os, sys, time
from pathlib import Path
from semiocity.data.lease import Owner, lease
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = 0
for round in range(40):
    path = folder / f"{round}.lease"
    with lease(path, Owner.here(sys.argv[2])) as held:
        if held:
            won += 1
            with open(folder / f"{round}.log", "a") as log:
                log.write("in\\n"); log.flush(); time.sleep(0.001); log.write("out\\n")
print(won)
"""


@pytest.mark.parametrize("stale", [False, True])
def test_many_processes_never_hold_it_together(tmp_path: Path, stale: bool) -> None:
    """Forty leases, six processes at once; in the second case each lease is first to be taken from a dead process."""
    gone = {**vars(Owner("0", 0, 0, Owner.here().host, dead_pid())), "nonce": "x"}
    for number in range(40 if stale else 0):
        (tmp_path / f"{number}.lease").write_text(json.dumps(gone))
    command = [sys.executable, "-c", CONTEND, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(6)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    outputs = []
    threads = [threading.Thread(target=lambda p=p: outputs.append(p.communicate("go\n")[0])) for p in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(int(output) for output in outputs) >= 40, "each lease was held at least once"
    for number in range(40):
        log = (tmp_path / f"{number}.log").read_text().split()
        assert log == ["in", "out"] * (len(log) // 2), f"lease {number} was held twice at a time"
    assert not list(tmp_path.glob("*.lease"))
    assert not list(tmp_path.glob(".*"))


def test_a_lease_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    """An empty lease would keep everybody else away until it is old."""
    code = """
import resource, signal, sys
from pathlib import Path
from semiocity.data.lease import Owner, lease
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
try:
    with lease(Path(sys.argv[1]), Owner.here()):
        pass
except OSError as error:
    print("OSError", error.errno)
"""
    call = [sys.executable, "-c", code, str(tmp_path / "a.lease")]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout.startswith("OSError")
    assert not list(tmp_path.iterdir())


def test_a_holder_that_the_queue_no_longer_has_is_followed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    path.write_text(json.dumps({**vars(Owner("71", 2, 3, "elsewhere", 1)), "nonce": "x"}))
    with lease(path, Owner.here("90")) as held:
        assert not held
    with lease(path, Owner.here("90"), gone=lambda holder: holder.job == "70") as held:
        assert not held
    with lease(path, Owner.here("90"), gone=lambda holder: (holder.job, holder.task) == ("71", 3)) as held:
        assert held
    assert not path.exists()
