"""The submission lock: of two submissions of a run at the same moment, the second waits and sees what the first did."""

from __future__ import annotations

import os
import pwd
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semiocity.data.lease import Owner, lease
from semiocity.errors import UserError
from semiocity.files import read_json

BEAT_S = 5.0
STALE_S = 60.0
"""A lock of another machine that nobody touched for so long is anybody's; on this machine a dead holder is seen."""
PATIENCE_S = 900.0
"""Longer than a submission asks a busy controller."""


def lock_file(run: Path) -> Path:
    return run / ".submitting.lease"


@contextmanager
def submission(run: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the run's submission lock for the block; a run folder that stays empty is removed again.

    Raises UserError that names the holder when it could not be had within `patience_s` seconds.
    """
    path = lock_file(run)
    told = False
    end = time.monotonic() + patience_s
    try:
        while True:
            with lease(path, Owner.here("submission"), beat_s=BEAT_S, stale_s=STALE_S) as held:
                if held:
                    yield
                    return
            if time.monotonic() > end:
                raise UserError(
                    f"{path}: {holder(path)} has been submitting for long; remove it if that process is gone"
                )
            if not told:
                told = True
                print(f"{run.name}: {holder(path)} is submitting it just now; waiting", file=sys.stderr, flush=True)
            time.sleep(0.2)
    finally:
        with suppress(OSError):
            run.rmdir()


def is_held(run: Path) -> bool:
    """Whether somebody may be submitting the run at this moment. Writes nothing."""
    path = lock_file(run)
    try:
        fresh = time.time() - path.stat().st_mtime < 2 * STALE_S  # clocks differ a little
        facts = read_json(path)
        return _exists(int(facts["pid"])) if facts["host"] == socket.gethostname() else fresh
    except FileNotFoundError:
        return False
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return fresh  # it is just being written


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def holder(path: Path) -> str:
    """Who holds the lock, for messages: `anna on login1 (process 4711)`."""
    try:
        facts = read_json(path)
        user = path.stat().st_uid
        return f"{_name(user)} on {facts['host']} (process {facts['pid']})"
    except (OSError, UserError, KeyError, TypeError):
        return "somebody"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def process(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's clock ticks: tells it from a later one of the same
    number. None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def myself() -> dict[str, str | int | None]:
    """This process, for `is_alive`."""
    return {"pid": os.getpid(), "started": process(os.getpid())}


def is_alive(who: dict[str, str | int | None]) -> bool:
    """Whether the process that `myself` described, on this machine, still runs."""
    return who.get("started") is not None and process(int(who["pid"] or 0)) == who["started"]
