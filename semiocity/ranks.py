"""What the ranks of a job leave for one another and for whoever asks why it ended: small files in the attempt folder.

    attempts/0001/ranks/JOB.RESTART/
      rendezvous.json   where this restart's ranks meet, written by rank 0
      0003.json         what became of rank 3: running, ended, failed, follower, hung
      0003.stacks       its stacks when it hung

Every restart has a folder of its own, so that the ranks of an earlier one can tell that they were superseded.
Standard library only: the login node reads these too.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from semiocity.errors import UserError
from semiocity.files import read_json, write_json

FOLDER, RENDEZVOUS = "ranks", "rendezvous.json"
LONGEST_REASON = 2000

# What a rank says when another one went away: a consequence, never the cause.
_FOLLOWER = re.compile(
    r"connection (?:was )?(?:likely )?(?:closed|reset|refused)|broken pipe|socket closed|failed to recv, got 0 bytes"
    r"|remote process exited|nccl ?remote ?error|ncclremoteerror|communicator was aborted|peer (?:closed|reset)",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"timed out|timeout|watchdog caught collective", re.IGNORECASE)
_COLLECTIVE = re.compile(
    r"gloo|nccl|tcpstore|process ?group|collective|dist(?:backend|network|store)error", re.IGNORECASE
)


class Place(Protocol):
    """Of a rank: what this module needs to know (see `semiocity.launch.world.World`)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def job_id(self) -> str: ...
    @property
    def restart(self) -> int: ...
    @property
    def folder(self) -> Path | None: ...


class Superseded(UserError):
    """A later restart of this job runs already: this rank outlived its time and must touch nothing."""


def folder_of(attempt: Path, job_id: str, restart: int) -> Path:
    """The folder of one restart's ranks inside an attempt's."""
    return attempt / FOLDER / f"{job_id}.{restart}"


def restarts(attempt: Path, job_id: str | None = None) -> list[tuple[str, int, Path]]:
    """(job id, restart, folder) of all restarts that left something, by job and restart."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = []
        for folder in (attempt / FOLDER).iterdir():
            job, dot, restart = folder.name.rpartition(".")
            if dot and restart.isdigit() and job_id in (None, job):
                found.append((job, int(restart), folder))
        return sorted(found)
    return []


def superseded(place: Place) -> str | None:
    """Why this rank is out of date: a later restart, or a later attempt at the same run, has begun. None if neither."""
    if place.folder is None:
        return None
    attempt = place.folder.parents[1]
    newer = [restart for _, restart, _ in restarts(attempt, place.job_id) if restart > place.restart]
    if newer:
        return f"restart {max(newer)} of job {place.job_id} has begun, this is restart {place.restart}"
    if attempt.is_dir():
        for other in attempt.parent.iterdir():
            if other.name.isdigit() and int(other.name) > int(attempt.name) and restarts(other):
                return f"attempt {other.name} at this run has begun, this is attempt {attempt.name}"
    return None


def refuse_superseded(place: Place) -> None:
    """Raise Superseded when `superseded` gives a reason."""
    if reason := superseded(place):
        raise Superseded(f"rank {place.rank} on {socket.gethostname()} outlived its time: {reason}; it ends here")


# ---------------------------------------------------------------- records


def record_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:04d}.json"


def stacks_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:04d}.stacks"


def write(place: Place, state: str, reason: str = "", **facts: Any) -> None:
    """Note what became of this rank. Nothing is written for a rank without a folder."""
    if place.folder is None:
        return
    data = {
        "rank": place.rank,
        "ranks": place.size,
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "processes": _process_table(),
        "pid": os.getpid(),
        "state": state,
        "reason": reason[:LONGEST_REASON],
        "time": time.time(),
        **facts,
    }
    write_json(record_file(place.folder, place.rank), data)


def ended(record: Mapping[str, Any]) -> bool:
    """Whether a rank that is noted as running is known to be gone: it was on this machine, and its process is not."""
    if record["state"] != "running" or record["processes"] != _process_table():
        return False
    try:
        return b"python" not in Path(f"/proc/{record['pid']}/cmdline").read_bytes()
    except OSError:
        return True


def kill(record: Mapping[str, Any]) -> None:
    """SIGKILL for a rank that runs on this machine and cannot end by itself."""
    if record["state"] == "running" and record["processes"] == _process_table() and not ended(record):
        with suppress(OSError):
            os.kill(record["pid"], signal.SIGKILL)


def _process_table() -> str:
    """Names the table that process ids of this rank are from: containers may have their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return socket.gethostname()


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """Records by rank; damaged ones are left out."""
    found = {}
    with suppress(FileNotFoundError):
        for path in folder.glob("[0-9]*.json"):
            with suppress(UserError, OSError, KeyError):
                data = read_json(path)
                found[int(data["rank"])] = data
    return found


@contextmanager
def recorded(place: Place) -> Iterator[None]:
    """Within, this rank is running; afterwards its record says how it ended. A single rank writes no record.

    An exception is noted with its time and passes on.
    """
    if place.size == 1 or place.folder is None:
        yield
        return
    write(place, "running")
    try:
        yield
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        with suppress(OSError):  # a full disk must not hide the error
            write(place, "follower" if follows(error) else "failed", reason)
        raise
    write(place, "ended")


def follows(error: BaseException) -> bool:
    """Whether an exception is how a rank notices that another one went away."""
    if isinstance(error, Superseded):
        return True
    text = f"{type(error).__name__}: {error}"
    return _FOLLOWER.search(text) is not None and not isinstance(error, UserError)


def collective_timeout(error: BaseException) -> bool:
    """Whether an exception is a collective's own timeout: nobody died, but somebody did not come."""
    text = f"{type(error).__name__}: {error}"
    return _TIMEOUT.search(text) is not None and _COLLECTIVE.search(text) is not None
