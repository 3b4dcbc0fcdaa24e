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
NAMES = sorted(OPERATIONS)


def script(*arguments: object) -> dict[str, int]:
    memory = Path("/dev/shm")  # hundreds of fsyncs: a disk would take most of the time
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        call = [sys.executable, str(HERE / "kill_points.py"), str(arguments[0]), folder, *map(str, arguments[1:])]
        result = subprocess.run(call, capture_output=True, text=True, check=False)
    print(result.stderr)
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, int] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_some_steps(name: str) -> None:
    assert script(name, 5)["kills"] >= 5


@pytest.mark.parametrize("name", NAMES)
def test_without_room(name: str) -> None:
    assert script(name, "full")["kills"] >= (name != "gc"), "deleting needs no room"


@pytest.mark.parametrize("name", NAMES)
def test_without_the_right_to_write(name: str) -> None:
    script(name, "read-only")


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_step(name: str) -> None:
    assert script(name)["kills"] > 10
