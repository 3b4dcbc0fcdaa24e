"""What was cancelled on this machine does not come back, holds nothing, and goes on when asked to."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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
