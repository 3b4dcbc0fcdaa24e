"""Why a job of several ranks ended: the first cause, not the many complaints that follow it. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity import ranks
from semiocity.launch.runs import Attempt

# srun's own words in the log of the batch script: "srun: error: n2: task 1: Killed".
_SRUN = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")


@dataclass(frozen=True)
class Cause:
    """The first thing that went wrong in one restart of a job."""

    kind: str
    """failed (an exception), hung, killed (ended without a word), connection (the network itself)."""
    rank: int | None
    host: str
    time: float | None
    """Seconds since 1970 by that rank's clock; None when it could not say so itself."""
    reason: str
    job: str
    restart: int
    log: Path | None
    """That rank's log."""
    stacks: tuple[Path, ...] = ()
    """Stacks of all ranks that could write them."""

    def __str__(self) -> str:
        who = "all ranks" if self.rank is None else f"rank {self.rank}"
        return f"{who}{f' on {self.host}' if self.host else ''}: {self.reason}"


def first_cause(attempt: Attempt, job: str | None = None, restart: int | None = None) -> Cause | None:
    """The first cause of the failure of a job of several ranks; None when its ranks noted none.

    By default of the latest restart of the attempt's (only) job. Ranks that just lost their connection to another one
    are no causes, however early they spoke.
    """
    found = [(j, r, folder) for j, r, folder in ranks.restarts(attempt.folder, job) if restart in (None, r)]
    if not found:
        return None
    job, restart, folder = max(found, key=lambda item: item[1])
    records = ranks.read(folder)
    batch_log = _log(attempt, job, 0)
    stacks = tuple(sorted(folder.glob("*.stacks")))

    def cause(kind: str, record: Mapping[str, Any], reason: str) -> Cause:
        rank = record.get("rank")
        log = _log(attempt, job, rank) if rank is not None else batch_log
        return Cause(kind, rank, record.get("host", ""), record.get("time"), reason, job, restart, log, stacks)

    if failed := _earliest(records, "failed"):
        return cause("failed", failed, failed["reason"])
    hung, silent = _earliest(records, "hung"), _silent(records)
    if hung:
        if silent and len(silent) < hung["ranks"]:
            told = {rank: records.get(rank, {"rank": rank}) for rank in silent}
            names = ", ".join(f"{rank} ({record.get('host', 'never started')})" for rank, record in told.items())
            reason = f"made no more progress and left no stacks: rank {names}; the others waited in {hung['where']}"
            return cause("hung", {**told[silent[0]], "time": hung["time"]}, reason)
        return cause("hung", {"time": hung["time"]}, f"{hung['reason']}; their stacks show what each waits for")
    if killed := _killed_by_srun(batch_log):
        host, rank, how = killed
        return cause("killed", {"rank": rank, "host": host}, f"ended without a word: {how}")
    followers = _earliest(records, "follower")
    if followers and silent:
        record = records.get(silent[0], {"rank": silent[0]})
        reason = "ended without a word: killed (memory of the node?), or its node failed"
        return cause("killed", {**record, "time": None}, reason)
    if followers:
        return cause("connection", followers, followers["reason"])
    return None


def _earliest(records: Mapping[int, dict[str, Any]], state: str) -> dict[str, Any] | None:
    return min((r for r in records.values() if r["state"] == state), key=lambda r: (r["time"], r["rank"]), default=None)


def _silent(records: Mapping[int, dict[str, Any]]) -> list[int]:
    """Ranks that have not said how they ended, or not even that they began."""
    size = max((record["ranks"] for record in records.values()), default=0)
    return [rank for rank in range(size) if records.get(rank, {"state": "running"})["state"] == "running"]


def _killed_by_srun(log: Path | None) -> tuple[str, int, str] | None:
    """(node, rank, how) of the first task that srun saw ending by a signal; not those that it ended itself."""
    for line in _lines(log):
        match = _SRUN.search(line)
        if match and not match[3].startswith("Exited with exit code"):
            return match[1], int(re.split(r"[,-]", match[2])[0]), match[3].strip()
        if "srun: Terminating" in line or "srun: Job step aborted" in line:
            return None
    return None


def _lines(log: Path | None) -> Iterable[str]:
    if log is None:
        return []
    with suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-5000:]
    return []


def _log(attempt: Attempt, job: str, rank: int) -> Path | None:
    path = attempt.logs / f"{job}_{rank}_log.out"
    return path if path.exists() else None
