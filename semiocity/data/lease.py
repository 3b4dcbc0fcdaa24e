"""Leases: two attempts do not work on one shard at the same time.

A lease is a small file beside the shard. It saves work; it does not guard the data: temporary names are unique and
equal work gives equal bytes, so two holders by accident (a node that slept) waste time and harm nothing. Hence a
simple protocol that needs nothing of the file system but exclusive creation, neither locks nor hard links.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname

BEAT_S = 30.0
"""A holder touches its lease this often."""
STALE_S = 600.0
"""A lease that nobody touched for so long is anybody's."""


@dataclass(frozen=True)
class Owner:
    """Who works: array job, how often it was restarted, task, host and process."""

    job: str
    restart: int
    task: int
    host: str
    pid: int

    @classmethod
    def here(cls, job: str = "local", restart: int = 0, task: int = 0) -> Owner:
        """This process."""
        return cls(job, restart, task, gethostname(), os.getpid())


@contextmanager
def lease(
    path: Path,
    owner: Owner,
    beat_s: float = BEAT_S,
    stale_s: float = STALE_S,
    gone: Callable[[Owner], bool] = lambda holder: False,
) -> Iterator[bool]:
    """Hold the lease at `path` for the block; yields False when somebody alive holds it.

    Taken when absent; from a lower restart of the same job and task; from a dead process of this host; from a holder
    whom `gone` knows to have ended; and from anyone who has not touched it for `stale_s` seconds. While held, a thread
    touches it every `beat_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = json.dumps({**asdict(owner), "nonce": uuid.uuid4().hex}, sort_keys=True)
    if not _take(path, owner, mine, stale_s, gone):
        yield False
        return
    done = threading.Event()
    beat = threading.Thread(target=_touch, args=(path, mine, done, beat_s), name=f"lease {path.name}", daemon=True)
    beat.start()
    try:
        yield True
    finally:
        done.set()
        beat.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _take(path: Path, owner: Owner, mine: str, stale_s: float, gone: Callable[[Owner], bool]) -> bool:
    while True:
        if _create(path, mine):
            return True
        theirs = _read(path)
        if theirs is None:
            continue  # released in between
        if not (_superseded(theirs, owner, gone) or _age_s(path) > stale_s):
            return False
        if not _remove(path, theirs, stale_s):
            return False  # somebody else is just taking it


def _remove(path: Path, theirs: str, stale_s: float) -> bool:
    """Remove a lease that was judged to be nobody's; False when another process is about to.

    One process at a time may do so, and only if the lease is still the one that was judged: otherwise two who judged
    the same lease could remove first that one and then the new lease of whoever was faster.
    """
    guard = path.with_name(f".{path.name}.takeover.tmp")
    if not _create(guard, ""):
        if _age_s(guard) <= stale_s:
            return False
        guard.unlink(missing_ok=True)  # its process died within these few lines
        return True
    try:
        if _read(path) == theirs:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)
    return True


def _superseded(text: str, owner: Owner, gone: Callable[[Owner], bool]) -> bool:
    try:
        found = json.loads(text)
        holder = Owner(*(found[name] for name in ("job", "restart", "task", "host", "pid")))
    except (ValueError, KeyError, TypeError):
        return False  # not yet written to its end, or not ours: age decides
    if (holder.job, holder.task) == (owner.job, owner.task) and holder.restart < owner.restart:
        return True
    return (holder.host == owner.host and not _alive(holder.pid)) or gone(holder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _create(path: Path, content: str) -> bool:
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:  # no room: an empty lease would be somebody's for ten minutes
        path.unlink(missing_ok=True)
        raise
    return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _age_s(path: Path) -> float:
    """Seconds since the lease was touched, by the clock of the file system, which all nodes share."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _touch(path: Path, mine: str, done: threading.Event, beat_s: float) -> None:
    while not done.wait(beat_s):
        with suppress(OSError):
            if _read(path) == mine:
                os.utime(path)
