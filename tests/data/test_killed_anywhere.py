"""Killed at every step, out of room, not allowed to write: nothing wrong is committed, the next attempt mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kill_operations import OPERATIONS

HERE = Path(__file__).parent


def script(how: str) -> dict[str, int]:
    """Run kill_points.py over all operations; what it counted."""
    memory = Path("/dev/shm")  # hundreds of fsyncs: a disk would take most of the time
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        Path(folder).chmod(0o755)  # read-only: another user must get in
        call = [sys.executable, str(HERE / "kill_points.py"), folder, how]
        result = subprocess.run(call, capture_output=True, text=True, check=False)
    print(result.stderr)
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, int] = json.loads(result.stdout)
    assert found.keys() == OPERATIONS.keys()
    return found


def test_killed_at_some_steps() -> None:
    assert min(script("3").values()) >= 3


def test_without_room() -> None:
    refused = script("full")
    assert all(refused[name] >= 1 for name in refused if name != "gc"), "deleting needs no room"


def test_without_the_right_to_write() -> None:
    assert set(script("read-only").values()) == {1}


@pytest.mark.soak
def test_killed_at_every_step() -> None:
    assert min(script("every").values()) > 10
