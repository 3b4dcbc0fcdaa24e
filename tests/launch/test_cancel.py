"""What was cancelled on this machine does not come back, holds nothing, and goes on when asked to."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from semiocity.data.layout import ShardPath, column_folder
from semiocity.files import write_json
from semiocity.launch import cancel
from semiocity.launch.runs import Attempt, new_attempt

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "source.size=[32, 32]", "--set", "source.train=8", "--set", "source.val=4"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cancel")
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cluster.toml"))
    assert semiocity(folder, "pack", "shards/city.toml", *SMALL).returncode == 0
    return folder


def semiocity(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "semiocity", *arguments], cwd=cwd, capture_output=True, text=True)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_local_run_ends_and_retry_finishes_it(project: Path) -> None:
    slow = ["--set", "args.rehearse_slow_batch_s=1", "--set", "args.batch=1"]
    command = [sys.executable, "-m", "semiocity", "caption", "jobs/caption.toml", *slow]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as submission:
        until(lambda: bool(list(project.glob("data/city/columns/caption/*/00000/*.lease"))))
        asked = semiocity(project, "cancel", "caption-city")
        assert asked.returncode == 2 and "add --yes" in asked.stderr
        done = semiocity(project, "cancel", "caption-city", "--yes")
        assert done.returncode == 0, done.stderr
        assert submission.wait(timeout=300) != 0
    assert not list(project.glob("data/city/columns/caption/*/00000/*.lease"))
    assert not list(project.glob("runs/caption-city/attempts/0001/requeue/*"))
    status = semiocity(project, "status", "caption-city")
    assert status.returncode == 0 and "2 cancelled" in status.stdout, status.stdout
    assert "nothing is queued or running" in semiocity(project, "cancel", "caption-city").stdout
    shutil.move(project / "jobs", project / "moved")  # the run folder alone says what it was
    try:
        again = semiocity(project, "retry", "caption-city")
    finally:
        shutil.move(project / "moved", project / "jobs")
    assert again.returncode == 0, again.stderr
    assert "2 done" in semiocity(project, "status", "caption-city").stdout
    assert "complete, nothing to do" in semiocity(project, "retry", "caption-city").stdout


# ---------------------------------------------------------------- with a controller that is busy


@pytest.fixture
def queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """An attempt whose task runs and holds a lease, and SLURM's commands, which note their calls.

    `answers` holds what squeue does, a line a call: `busy`, `running`, or `gone`, which stays.
    """
    attempt = new_attempt(tmp_path / "runs" / "caption-city")
    data: dict[str, Any] = {
        "kind": "stage",
        "run": str(attempt.run),
        "dataset": str(tmp_path / "city"),
        "column": "caption",
    }
    data |= {"revision": "abc", "executor": "slurm", "host": socket.gethostname(), "tasks": [[0]], "merge": None}
    attempt.write({**data, "jobs": ["7_0"]})
    write_json(attempt.task_file(0), {"state": "running", "job": "7_0"})
    lease = lease_of(attempt)
    lease.parent.mkdir(parents=True)
    write_json(lease, {"job": "7", "task": 0})
    attempt.requeue_file("7_0", 0).touch()
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "squeue").write_text(
        f"""#!/bin/bash
cd {tmp_path}; echo squeue >>calls; read -r answer <answers
[ "$answer" = gone ] || sed -i 1d answers
case $answer in
  busy) echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1 ;;
  running) echo "7_0|RUNNING|None" ;;
esac
"""
    )
    (commands / "scancel").write_text(f"#!/bin/bash\ncd {tmp_path}; echo scancel >>calls\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return attempt


def lease_of(attempt: Attempt) -> Path:
    data = json.loads(attempt.file.read_text())
    return ShardPath(column_folder(Path(data["dataset"]), "caption", "abc"), 0).lease


def answers(attempt: Attempt, *words: str) -> Path:
    folder = attempt.run.parents[1]
    (folder / "answers").write_text("".join(f"{word}\n" for word in words))
    (folder / "calls").write_text("")
    return folder / "calls"


def test_the_controller_is_asked_seldom_and_may_be_busy(
    queued: Attempt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(cancel, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    calls = answers(queued, "running", "busy", *["running"] * 8, "gone")
    assert cancel.run([queued.run], yes=True) == 0
    assert "cancelled" in capsys.readouterr().out
    assert not lease_of(queued).exists() and not list(queued.requeue.iterdir())
    assert calls.read_text().split() == ["squeue", "scancel"] + ["squeue"] * 10
    assert pauses == sorted(pauses) and sum(pauses) > 60, "so many looks are enough for longer than SLURM's KillWait"


def test_what_does_not_end_keeps_its_lease_until_the_same_command_finds_it_gone(
    queued: Attempt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cancel, "FIRST_S", 0.01)
    answers(queued, "running", "busy", "gone")
    assert not cancel.cancel(cancel.find(queued.run), wait_s=0.0)
    said = capsys.readouterr().err
    assert "still ending: 7 (squeue: " in said and "Socket timed out" in said
    assert lease_of(queued).exists(), "it may still be at work"
    assert cancel.run([queued.run], yes=True) == 0
    assert "nothing is queued or running" in capsys.readouterr().out
    assert not lease_of(queued).exists()
