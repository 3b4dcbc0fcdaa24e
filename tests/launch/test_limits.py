"""The time limit inside a unit of work: the batch script's watcher, with a scontrol of our own, and the warning."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Resources
from semiocity.files import write_json
from semiocity.launch import ends, limits
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt, new_attempt

CODE = Path(__file__).parents[2]


@dataclass
class Batch:
    """A batch script whose task does not end, on a cluster of one fake scontrol."""

    attempt: Attempt
    folder: Path

    def end(self, reason: str, restart: int, come_back: bool = True) -> dict[str, str]:
        """Let SLURM send TERM for some `reason`; the note of that life, once the watcher or the script ended."""
        bin_ = self.folder / "bin"
        bin_.mkdir(exist_ok=True)
        tool = bin_ / "scontrol"
        tool.write_text(
            f'#!/bin/sh\necho $@ >>{self.folder}/calls\ncase "$*" in\n'
            f"*config*) echo 'KillWait                = 2 sec' ;;\n"
            f"*show*) echo 'JobId=9 JobState=COMPLETING Reason={reason} ExcNodeList=(null)' ;;\nesac\n"
        )
        tool.chmod(0o755)
        lines = limits.watch(self.attempt, CODE, "0", {"time_limit": 3}, come_back)
        ready = self.folder / f"ready.{restart}"
        script = "\n".join([*lines, f"echo $limit >{ready}", "sleep 60 &", "wait $!; wait $!"])
        environment = {
            "PATH": f"{bin_}:/usr/bin:/bin",
            "SLURM_JOB_ID": "9",
            "SLURM_RESTART_COUNT": str(restart),
            "SLURM_JOB_NODELIST": "n1",
        }
        batch = subprocess.Popen(["bash", "-c", script], env=environment, start_new_session=True)
        try:
            until(lambda: ready.exists() and ready.read_text().strip() != "")
            watcher = int(ready.read_text())
            time.sleep(0.3)  # it sets its traps
            os.killpg(batch.pid, signal.SIGCONT)
            for pid in (watcher, batch.pid):
                os.kill(pid, signal.SIGTERM)
            if reason == "TimeLimit":
                until(lambda: not Path(f"/proc/{watcher}").exists() or zombie(watcher))
            else:
                time.sleep(2.5)
                assert not zombie(watcher), "it goes on watching"
            return ends.read(ends.end_file(self.attempt, "9", restart))
        finally:
            os.killpg(batch.pid, signal.SIGKILL)
            batch.wait()

    def requeued(self) -> int:
        return (self.folder / "calls").read_text().splitlines().count("requeue 9")


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(new_attempt(tmp_path / "runs" / "r"), tmp_path)


def test_a_job_that_reaches_its_limit_inside_a_unit_of_work_comes_back(batch: Batch) -> None:
    write_json(batch.attempt.task_file(0), {"shard": 3, "done_shards": 1, "rows": 8})
    note = batch.end("TimeLimit", 0)
    assert (note["cause"], note["budget"], note["hard"]) == ("time_limit", "time_limit", "yes")
    assert "again" not in note and batch.requeued() == 1
    # The next life got further: it comes back again. The one after it did not: its hours would be lost every time.
    write_json(batch.attempt.task_file(0), {"shard": 3, "done_shards": 1, "rows": 16})
    assert "again" not in batch.end("TimeLimit", 1) and batch.requeued() == 2
    note = batch.end("TimeLimit", 2)
    assert (note["cause"], note["again"], note["budget"]) == ("time_limit", "no", "none")
    assert batch.requeued() == 2
    found = ends.cause(batch.attempt, {}, "9")
    assert found.name == "time_limit" and "signal_delay_s" in found.advice


def test_a_training_goes_by_its_checkpoints(batch: Batch) -> None:
    latest = batch.attempt.run / "checkpoints" / "latest"
    latest.parent.mkdir()
    latest.write_text("step-00000010\n")
    assert batch.end("TimeLimit", 0)["progress"] == "step-00000010"
    assert batch.end("TimeLimit", 1)["again"] == "no"


def test_a_preemption_is_left_to_slurm(batch: Batch) -> None:
    assert batch.end("None", 0) == {}
    assert batch.requeued() == 0


def test_who_saved_in_time_is_left_to_the_end_of_the_script(batch: Batch) -> None:
    batch.attempt.requeue_file("9", 0).write_text("time_limit")
    assert batch.end("TimeLimit", 0) == {}


def test_where_jobs_do_not_come_back_the_note_says_what_happened(batch: Batch) -> None:
    assert batch.end("TimeLimit", 0, come_back=False)["cause"] == "time_limit"
    assert batch.requeued() == 0


def test_a_script_that_was_told_to_end_brings_nothing_back(batch: Batch) -> None:
    """scancel sends TERM to the batch script as well, which now outlives it: what it cancelled must stay away."""
    batch.attempt.requeue_file("9", 0).write_text("preemption")
    batch.end("None", 0)
    teardown = CODE / "semiocity" / "launch" / "teardown.sh"
    words = ["bash", str(teardown), str(batch.attempt.folder), "85", "yes", "preemption=5"]
    environment = {"PATH": f"{batch.folder / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "0"}
    subprocess.run(words, env={**environment, "SEMIOCITY_TOLD": "yes"}, check=True)
    assert batch.requeued() == 0 and ends.read(ends.end_file(batch.attempt, "9", 0)) == {}
    subprocess.run(words, env=environment, check=True)
    assert batch.requeued() == 1, "without, it is as ever"


def test_a_notice_shorter_than_a_batch_or_a_save_is_said_before(tmp_path: Path) -> None:
    work = Work(
        "stage",
        tmp_path / "runs/c",
        tmp_path / "city",
        {"args": {"batch": 8}},
        Resources(),
        column="caption",
        revision="r",
    )
    assert limits.warning(work) is None, "nothing is known"
    attempt = new_attempt(work.run)
    write_json(attempt.task_file(0), {"state": "done", "rows_per_s": 4.0})
    assert limits.warning(work) is None
    write_json(attempt.task_file(1), {"state": "done", "rows_per_s": 0.04})
    said = limits.warning(work)
    assert said is not None and "a batch of 8 took 200 s" in said and "signal_delay_s=300" in said
    assert limits.warning(replace(work, resources=Resources(signal_delay_s=300))) is None
    train = replace(work, kind="train", job={"global_batch": 64})
    write_json(work.run / "progress.json", {"step": 10, "samples_per_s": 0.8})
    assert limits.warning(train) is None
    folder = work.run / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").touch()
    os.utime(folder / "a.safetensors", (1000.0, 1000.0))
    latest = folder.parent / "latest"
    latest.write_text(f"{folder.name}\n")
    os.utime(latest, (1100.0, 1100.0))
    said = limits.warning(train)
    assert said is not None and "a step with its checkpoint took 180 s" in said
