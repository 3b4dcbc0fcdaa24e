"""What of a run is queued or running: one look at the queue, together with what attempts noted."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from semiocity.launch import held, lock, squeue
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt, alive, attempts


@dataclass(frozen=True)
class UnderWay:
    """The tasks of earlier attempts that are queued or running."""

    tasks: Mapping[str, list[int]] = field(default_factory=dict)
    """Job id -> shards, of attempts at the same work."""
    jobs: frozenset[str] = frozenset()
    """Job ids of every attempt of the run."""
    live: frozenset[str] = frozenset()
    """Every job in the queue of those who ever submitted this run."""
    submitted: int = 0
    """Jobs of this user in the queue, each task of an array counted. 0 when nobody had to be asked."""
    over: tuple[Attempt, ...] = ()
    """Attempts none of whose tasks is queued or running."""
    held: tuple[held.Held, ...] = ()
    """Those of `tasks` that SLURM holds until somebody does something."""

    @property
    def queued(self) -> list[str]:
        """Those of `tasks` that SLURM holds."""
        return [job for job in self.tasks if job in self.live]


def under_way(work: Work, limited: bool = False) -> UnderWay:
    """What is under way in `work`'s run. squeue is called once, if an attempt was queued before or the number of jobs
    is `limited`; UserError when it cannot be asked, since work that may be queued must not be queued again."""
    earlier = {attempt: attempt.read() for attempt in attempts(work.run) if attempt.file.exists()}
    queue: list[squeue.Queued] = []
    if limited or any(data["executor"] == "slurm" for data in earlier.values()):
        queue = squeue.jobs({data["user"] for data in earlier.values() if data.get("user")})
    live = {job.id for job in queue}
    tasks: dict[str, list[int]] = {}
    jobs: set[str] = set()
    over = []
    for attempt, data in earlier.items():
        found = _slurm(attempt, data, queue, live) if data["executor"] == "slurm" else _local(data)
        jobs |= found.keys()
        if not found:
            over.append(attempt)
        if (data["kind"], data["column"], data["revision"]) == (work.kind, work.column, work.revision):
            tasks |= found
    me = squeue.own_name()
    kept = held.find({job.id: squeue.Seen(job.state, job.reason) for job in queue}, work.run.name, tasks)
    submitted = sum(job.user == me for job in queue)
    return UnderWay(tasks, frozenset(jobs), frozenset(live), submitted, tuple(over), tuple(kept))


def _slurm(attempt: Attempt, data: dict[str, Any], queue: list[squeue.Queued], live: set[str]) -> dict[str, list[int]]:
    """Job id -> shards. A job is known by the id that was noted, and by its sbatch file: a submission may have been
    killed between sbatch and the note, and then the note is made now."""
    noted = {job: index for index, job in enumerate(data["jobs"])}
    strays = [job for job in queue if job.id not in noted and Path(job.command).parent == attempt.folder]
    if strays:
        for job in strays:
            noted[job.id] = _index(job)
        data["jobs"] = [job for job, _ in sorted(noted.items(), key=lambda item: item[1])]
        attempt.write(data)
    return {job: _shards(data, index) for job, index in noted.items() if job in live}


def _index(job: squeue.Queued) -> int:
    first = int(Path(job.command).stem.rpartition("-")[2])
    return first + int(job.id.partition("_")[2] or 0)


def _shards(data: Mapping[str, Any], index: int) -> list[int]:
    tasks: list[list[int]] = data["tasks"]
    return tasks[index] if index < len(tasks) else []


def _local(data: Mapping[str, Any]) -> dict[str, list[int]]:
    """While the command that runs them is alive, all its tasks are under way, also those it has not started yet. This
    very process has followed what it began before to its end."""
    if data["host"] != socket.gethostname():
        return {}
    who = data.get("process", {})
    if who != lock.myself() and lock.is_alive(who):
        return {f"process {who['pid']}": list(chain(*data["tasks"]))}
    return {job: _shards(data, index) for index, job in enumerate(data["jobs"]) if alive(job)}
