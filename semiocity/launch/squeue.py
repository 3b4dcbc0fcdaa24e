"""What SLURM still holds, asked with one `squeue` call. Standard library only; works without accounting."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping

from semiocity.errors import UserError

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
        done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise UserError(f"squeue: {error}") from None
    # A single id that is gone for good makes squeue fail; among several it is left out.
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise UserError(f"squeue: {done.stderr.strip()}")
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[1] in LIVE}
