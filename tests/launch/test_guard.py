"""The guard beside srun, in a real shell: it ends an srun whose step is dead, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semiocity.launch import ends
from semiocity.launch.runs import Attempt

SOURCE = Path(__file__).parents[2]
SLEEP = "import sys, time; time.sleep(float(sys.argv[1]))"


def batch(folder: Path, srun_s: float, task_s: float, index: int = 0) -> tuple[int, float, dict[str, str]]:
    """A batch script whose srun lives for `srun_s` and its task for `task_s` seconds, with a grace of one second.

    Returns srun's exit code, how long it took in seconds, and the note.
    """
    attempt = Attempt(folder / "run (1)", 1)
    attempt.folder.mkdir(parents=True)
    entry = f"-m semiocity.launch.entry '{attempt.run}' 1"
    guard, *rest = ends.guard(attempt, SOURCE, str(index), nodes=1)
    guard = guard.replace(f"$$ {ends.GUARD_S} ", "$$ 1 ")
    program = f"{sys.executable} -c '{SLEEP}'"
    lines = [
        guard,
        *rest,
        f"(exec -a python {program} {task_s} {entry} {index}) & task=$!",
        f"(exec -a /usr/bin/srun {program} {srun_s} python {entry} {index})",
        "rc=$?",
        "kill $guard 2>/dev/null; kill $task 2>/dev/null",
        "echo $rc $SECONDS",
        "wait",
    ]
    environment = {"SLURM_JOB_ID": "12", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    code, seconds = done.stdout.split()
    return int(code), float(seconds), ends.read(ends.end_file(attempt, "12", 0))


def test_an_srun_whose_tasks_are_gone_is_ended(tmp_path: Path) -> None:
    code, seconds, note = batch(tmp_path, srun_s=60, task_s=2)
    assert code == 137
    assert 3 <= seconds < 30
    assert note["cause"] == "killed"
    assert "slurmstepd" in note["reason"]


@pytest.mark.parametrize("index", [0, 7])
def test_an_srun_with_a_task_is_left_alone(tmp_path: Path, index: int) -> None:
    code, seconds, note = batch(tmp_path, srun_s=5, task_s=60, index=index)
    assert (code, note) == (0, {})
    assert seconds >= 5


def test_nothing_is_concluded_before_a_task_was_seen(tmp_path: Path) -> None:
    """An image may take minutes to start."""
    code, _, note = batch(tmp_path, srun_s=5, task_s=0)
    assert (code, note) == (0, {})
