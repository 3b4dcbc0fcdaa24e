"""What SLURM still holds, asked with one `squeue` call. Standard library only; works without accounting."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
    "SPECIAL_EXIT",
    "STOPPED",
    "RESIZING",
}
"""States of jobs that will still do something. Finished jobs linger in squeue for some minutes (MinJobAge)."""


class Seen(NamedTuple):
    """What squeue says of a live job."""

    state: str
    reason: str
    """Why it does not run, in SLURM's words (`launch.held` knows some); `None` when it runs."""


@dataclass(frozen=True)
class Queued:
    """A job, or one task of an array, that will still do something."""

    id: str
    """`123`, or `123_4`."""
    state: str
    user: str
    command: str
    """The sbatch file that it came from, as it was named to sbatch."""
    reason: str = ""
    """As in `Seen`."""

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
    return {job: seen.state for job, seen in look(job_ids).items()}


def look(job_ids: Iterable[str], patience_s: float = 0) -> Mapping[str, Seen]:
    """State and reason by job id of those jobs that are still live. A busy controller is asked again for `patience_s`
    seconds. Raises UserError as `states` does."""
    wanted = whole_jobs(job_ids)
    if not wanted:
        return {}
    call = ["squeue", "--noheader", "--array", f"--jobs={','.join(wanted)}", "--format=%i|%T|%r"]
    try:
        lines = scheduler.call(call, patience_s=patience_s).splitlines()
    except UserError as error:
        # A single id that is gone for good makes squeue fail; among several it is left out.
        if "Invalid job id" not in str(error):
            raise
        return {}
    fields = (line.strip().split("|", 2) for line in lines)
    return {found[0]: Seen(found[1], found[2]) for found in fields if len(found) == 3 and found[1] in LIVE}


def jobs(users: Collection[str], patience_s: float = scheduler.PATIENCE_S) -> list[Queued]:
    """All live jobs of this user and of `users`, one for each task of an array, in one call."""
    names = sorted({own_name(), *users})
    call = ["squeue", "--noheader", "--array", f"--user={','.join(names)}", "--format=%i|%T|%u|%r|%o"]
    fields = (line.strip().split("|", 4) for line in scheduler.call(call, patience_s=patience_s).splitlines())
    return [
        Queued(job, state, user, command, reason)
        for job, state, user, reason, command in (found for found in fields if len(found) == 5)
        if state in LIVE
    ]


def own_name() -> str:
    """This user's name, as SLURM sees it; the number where the machine has no name for it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
