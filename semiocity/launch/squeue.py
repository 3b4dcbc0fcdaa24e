"""What SLURM still holds, asked with one `squeue` call. Standard library only; works without accounting."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from semiocity.errors import UserError
from semiocity.launch import scheduler

LIVE = {
    "PENDING",
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "STOPPED",
    "RESIZING",
}
"""States of jobs that will still do something. Finished jobs linger in squeue for some minutes (MinJobAge)."""


@dataclass(frozen=True)
class Queued:
    """A job, or one task of an array, that will still do something."""

    id: str
    """`123`, or `123_4`."""
    state: str
    user: str
    command: str
    """The sbatch file that it came from, as it was named to sbatch."""

    @property
    def whole(self) -> str:
        return self.id.partition("_")[0]


def whole_jobs(job_ids: Iterable[str]) -> list[str]:
    """Ids of whole jobs: `123_0, 123_1, 124` gives `123, 124`."""
    return sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)


def states(job_ids: Iterable[str]) -> Mapping[str, str]:
    """State by job id (`123_4` -> "RUNNING") of those jobs that are still live; the others are absent.

    Raises UserError when squeue cannot be asked.
    """
    wanted = whole_jobs(job_ids)
    if not wanted:
        return {}
    call = ["squeue", "--noheader", "--array", f"--jobs={','.join(wanted)}", "--format=%i %T"]
    try:
        lines = scheduler.call(call, patience_s=0).splitlines()
    except UserError as error:
        # A single id that is gone for good makes squeue fail; among several it is left out.
        if "Invalid job id" not in str(error):
            raise
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[1] in LIVE}


def jobs(users: Collection[str], patience_s: float = scheduler.PATIENCE_S) -> list[Queued]:
    """All live jobs of this user and of `users`, one for each task of an array, in one call."""
    names = sorted({own_name(), *users})
    call = ["squeue", "--noheader", "--array", f"--user={','.join(names)}", "--format=%i|%T|%u|%o"]
    fields = (line.strip().split("|", 3) for line in scheduler.call(call, patience_s=patience_s).splitlines())
    return [Queued(*found) for found in fields if len(found) == 4 and found[1] in LIVE]


def own_name() -> str:
    """This user's name, as SLURM sees it; the number where the machine has no name for it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
