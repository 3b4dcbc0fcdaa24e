"""`semiocity cancel RUN`: end what is queued or running of a run, so that it does not come back.

A cancelled attempt has a file `cancelled`: tasks that save then do not ask for being brought back, and
neither the batch script nor the local executor starts anything of it again. What was done stays.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.data.layout import ShardPath, column_folder
from semiocity.errors import UserError
from semiocity.launch import scheduler, squeue
from semiocity.launch.runs import Attempt, alive, attempts

GONE_S = 60.0
"""How long tasks that were told to end may take; SLURM kills them after its KillWait, 30 s by default."""
FIRST_S, MOST_S = 1.0, 10.0
"""Seconds before the first look whether they are gone, and most between two: each look is a call to the controller."""


@dataclass(frozen=True)
class Found:
    """What is queued or running of an attempt."""

    attempt: Attempt
    data: Mapping[str, Any]
    jobs: tuple[str, ...]
    """Job ids, with array tasks one by one; with the local executor process ids."""

    @property
    def slurm(self) -> bool:
        return bool(self.data["executor"] == "slurm")

    def __str__(self) -> str:
        names = squeue.whole_jobs(self.jobs) if self.slurm else self.jobs
        what = "job" if self.slurm else "process"
        return (
            f"{self.attempt.run.name} attempt {self.attempt.number}: {len(self.jobs)} tasks, {what} {', '.join(names)}"
        )


def find(run: Path) -> list[Found]:
    """What is queued or running of a run, of a pipeline with its steps. One squeue call. Raises UserError."""
    return _look(run)[0]


def _look(run: Path) -> tuple[list[Found], list[Found]]:
    """What `find` returns; and what was cancelled before and has ended since."""
    read = [(attempt, attempt.read()) for place in _runs(run) for attempt in attempts(place) if attempt.file.exists()]
    noted = [job for _, data in read if data["executor"] == "slurm" for job in data["jobs"] if job]
    live = squeue.look(noted, patience_s=scheduler.PATIENCE_S)
    found, ended = [], []
    for attempt, data in read:
        if data["executor"] == "slurm":
            jobs = [job for job in data["jobs"] if job in live]
        elif data["host"] == socket.gethostname():
            jobs = [job for job in data["jobs"] if job and alive(job)]
        else:
            jobs = []
        if jobs:
            found.append(Found(attempt, data, tuple(jobs)))
        elif attempt.cancelled.exists():
            ended.append(Found(attempt, data, ()))
    return found, ended


def _runs(run: Path) -> list[Path]:
    """The run, and of a pipeline the runs of its steps after it: gates end first, so that they queue nothing more."""
    made = [attempt.read() for attempt in attempts(run) if attempt.file.exists()]
    steps = [Path(step["work"]["run"]) for data in made for step in data.get("steps", {}).values()]
    return list(dict.fromkeys([run, *steps]))


def cancel(found: Iterable[Found], wait_s: float = GONE_S) -> bool:
    """End it, and wait until it is gone. Returns whether it is. What is gone holds nothing any more either; what may
    not be, since the controller does not answer, may still be at its shards."""
    found = list(found)
    for item in found:
        item.attempt.cancelled.touch()
    if queued := squeue.whole_jobs(job for item in found if item.slurm for job in item.jobs):
        scheduler.call(["scancel", *queued])
    for item in found:
        for job in () if item.slurm else item.jobs:
            with suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)
    end, pause_s = time.monotonic() + wait_s, FIRST_S if any(item.slurm for item in found) else 0.2
    while found:
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, MOST_S)
        left, fault = _left(found)
        for item in found:
            if item not in left:
                _release(item)
        found = left
        if found and time.monotonic() > end:
            names = ", ".join(
                job for item in found for job in (squeue.whole_jobs(item.jobs) if item.slurm else item.jobs)
            )
            why = f" ({fault})" if fault else ""
            print(
                f"still ending: {names}{why}; `semiocity status` shows when they are gone, and the same command then "
                "removes what they held",
                file=sys.stderr,
            )
            return False
    return True


def _left(found: Sequence[Found]) -> tuple[list[Found], str]:
    """What is not known to be gone, and the controller's words when it did not answer. One squeue call."""
    live: Iterable[str] = ()
    fault = ""
    try:
        live = squeue.look(job for item in found if item.slurm for job in item.jobs)
    except UserError as error:  # busy: what nobody can tell is asked again
        fault = str(error)

    def ending(item: Found) -> bool:
        if item.slurm:
            return bool(fault) or any(job in live for job in item.jobs)
        return any(alive(job) for job in item.jobs)

    return [item for item in found if ending(item)], fault


def _has_steps(item: Found) -> bool:
    return bool(item.data["kind"] == "pipeline")


def _release(item: Found) -> None:
    """Remove what jobs that were killed still hold: the leases of the shards that they were at, and requeue marks."""
    for mark in item.attempt.requeue.glob("*"):
        mark.unlink(missing_ok=True)
    if item.data["kind"] not in ("pack", "stage", "reduce"):
        return
    folder = column_folder(Path(item.data["dataset"]), item.data["column"], item.data["revision"])
    for index, shards in enumerate(item.data["tasks"]):
        try:
            facts = json.loads(item.attempt.task_file(index).read_text())
        except (OSError, ValueError):
            continue  # it never began
        if facts.get("state") == "done":
            continue
        job, _, task = str(facts["job"]).partition("_")
        for shard in shards:
            path = ShardPath(folder, shard).lease
            with suppress(OSError, ValueError, KeyError):
                held = json.loads(path.read_text())
                if (held["job"], held["task"]) == (job, int(task or 0)):
                    path.unlink()


def run(runs: Sequence[Path], yes: bool, dry_run: bool = False) -> int:
    """Show what there is of some runs, ask, end it. Exit status 0 when nothing of it is left, or with `dry_run`."""
    looks = [_look(run) for run in runs]
    found = [item for there, _ in looks for item in there]
    for item in () if dry_run else (item for _, ended in looks for item in ended):
        _release(item)  # what it still held when nobody could wait for it any longer
    if not found:
        print(f"{', '.join(run.name for run in runs)}: nothing is queued or running")
        return 0
    for item in found:
        print(item)
    if dry_run:
        return 0
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nobody can be asked here; add --yes")
        if input("End all of this? What was done stays. [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    while found:
        if not cancel(found):
            return 1
        # A gate may just have queued its step.
        found = [item for run in runs for item in find(run)] if any(map(_has_steps, found)) else []
    print("cancelled; the same commands, or `semiocity retry`, go on from what was done")
    return 0
