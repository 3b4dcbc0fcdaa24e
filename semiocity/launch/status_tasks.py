"""What each task of an attempt is doing, and which tasks of a run's attempts still count. Standard library only."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.launch import causes, ends, lock
from semiocity.launch.compact import packed_states
from semiocity.launch.progress import measure, shards_done
from semiocity.launch.runs import Attempt, alive

GATHER = 100
"""Tasks that have to be done newly before they are gathered in a file."""

STALE_S = 120.0
"""A task on another machine that has not written for so long, and that nobody can ask about, counts as lost."""

UNDER_WAY = ("queued", "running", "stopped")
FAILED = ("failed", "lost")


@dataclass(frozen=True)
class Read:
    """An attempt with what is written of it, read once."""

    attempt: Attempt
    data: dict[str, Any]
    written: dict[int, dict[str, Any]]
    broken: bool = False
    """Whoever was to queue or start its tasks is gone: those without a job will never have one."""

    @classmethod
    def of(cls, attempt: Attempt) -> Read:
        data, broken = attempt.read(), False
        if not _all_have_jobs(data) and not _has_submitter(attempt, data):
            data, broken = attempt.read(), True  # it may have noted the rest just before it left
        return cls(attempt, data, _task_files(attempt, data["jobs"]), broken)

    @property
    def work(self) -> tuple[str, str, str]:
        """What the attempt makes: kind, column, revision."""
        return self.data["kind"], self.data.get("column", ""), self.data.get("revision", "")

    @cached_property
    def logs(self) -> set[str]:
        """Names in the folder of logs."""
        try:
            return set(os.listdir(self.attempt.logs))  # noqa: PTH208
        except FileNotFoundError:
            return set()


def _all_have_jobs(data: Mapping[str, Any]) -> bool:
    return len(data["jobs"]) >= len(data["tasks"]) + (data.get("merge") is not None) and all(data["jobs"])


def _has_submitter(attempt: Attempt, data: Mapping[str, Any]) -> bool:
    """Whether the command that queues the attempt's tasks, or runs them here, may still be at it."""
    if data["executor"] == "slurm":
        return lock.is_held(attempt.run)
    who = data.get("process")
    return who is None or data["host"] != socket.gethostname() or lock.is_alive(who)


def task_states(attempt: Attempt, live: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """State of every task of an attempt: done, running, queued, stopped, cancelled, failed or lost (ended without a
    word, or never queued), and the cause of those that ended without being done.

    `live` is squeue's answer when it was asked; None asks nobody and believes the files.
    """
    read = Read.of(attempt)
    return [told(read, state) for state in judged(read, live)]


def judged(read: Read, live: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """What the tasks' files say, with "index", "job" and "state" as they are; opens nothing more."""
    data = read.data
    found = []
    cancelled = read.attempt.cancelled.exists()
    for index in range(max(len(data["tasks"]) + (data.get("merge") is not None), len(data["jobs"]))):
        job = data["jobs"][index] if index < len(data["jobs"]) else ""
        facts = read.written.get(index, {})
        state = facts.get("state", "queued")
        if facts and facts.get("job") != job and job and data["executor"] == "local":
            state = "queued"  # brought back a moment ago; the file is still its predecessor's
        if state in UNDER_WAY:
            state = _judge(state, job, facts, read, live)
        if cancelled and state in ("lost", "stopped"):
            state = "cancelled"
        found.append({**facts, "index": index, "job": job, "state": state})
    return found


def told(read: Read, state: Mapping[str, Any]) -> dict[str, Any]:
    """A judged task with "cause", "reason" and "log". Opens the end of the log of one that failed."""
    job, cause, reason = state["job"], "", state.get("reason") or ""
    log = f"{job}_0_log.out"
    where = str(read.attempt.logs / log) if state["state"] not in ("done", "queued") and log in read.logs else ""
    match state["state"]:
        case "cancelled":
            cause, reason = causes.CANCELLED, ""
        case "lost" if not job:
            never = causes.Cause(causes.NEVER_QUEUED, "")
            cause, reason = never.name, f"{never}; {never.advice}"
        case "failed" | "lost":
            found = ends.cause(read.attempt, read.written.get(state["index"], {}), job)
            cause, reason = found.name, f"{found}; {found.advice}"
        case "stopped":
            cause = causes.of_signal(state.get("reason"))
    return {**state, "reason": reason, "cause": cause, "log": where}


def _task_files(attempt: Attempt, jobs: Sequence[str]) -> dict[int, dict[str, Any]]:
    """What the tasks wrote of themselves, by index.

    Tasks that are done are gathered in one file by whoever looks, so that ten thousand of them are not opened again.
    """
    try:
        names = os.listdir(attempt.folder / "tasks")  # noqa: PTH208
    except FileNotFoundError:
        return {}
    indices = sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())
    gathered = _json(attempt.gathered)
    known = {i: gathered[str(i)] for i in indices if str(i) in gathered}
    # A task that was submitted again has another job, and is not done.
    known = {i: facts for i, facts in known.items() if i < len(jobs) and jobs[i] == facts.get("job")}
    found = known | {i: _json(attempt.task_file(i)) for i in indices if i not in known}
    # Read last: what was packed away since the listing is there.
    packed = packed_states(attempt)
    found = {i: facts for i, facts in found.items() if facts and i not in packed}
    done = {str(i): facts for i, facts in found.items() if facts.get("state") == "done"}
    if len(done) >= len(known) + GATHER:
        with suppress(OSError):  # somebody else's run
            write_json(attempt.gathered, done)
    return found | packed


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (FileNotFoundError, UserError):
        return {}


def _judge(state: str, job: str, facts: Mapping[str, Any], read: Read, live: Mapping[str, str] | None) -> str:
    """What a task that has not said "done" or "failed" is really doing."""
    data = read.data
    if not job:
        return "lost" if read.broken else state
    if data["executor"] == "slurm":
        if live is None:
            return state
        if job not in live:
            return "lost"
        return "running" if live[job] == "RUNNING" else "queued"
    if data["host"] == socket.gethostname():
        return state if alive(job) else "lost"
    return state if time.time() - facts.get("updated", 0) < STALE_S else "lost"


# ---------------------------------------------------------------- which of them count


@dataclass(frozen=True)
class Counted:
    """A task that still counts."""

    read: Read
    state: dict[str, Any]
    """As `judged` gives it."""
    shards: tuple[int, ...]
    """Those of its shards that no later attempt took over."""


@dataclass(frozen=True)
class Current:
    """How a run stands, over all of its attempts."""

    counted: tuple[Counted, ...]
    """Tasks of the newest attempt, of attempts that still run, and of those that left something undone."""
    reads: tuple[Read, ...]
    """The attempts of these tasks, oldest first; the newest is always among them."""
    moving: frozenset[Attempt]
    """Those of them that are under way, and the newest."""
    before: tuple[int, int]
    """Shards done, and shards in all, of the same work by all the others."""

    def of(self, attempt: Attempt) -> list[dict[str, Any]]:
        """States of an attempt's tasks that count."""
        return [one.state for one in self.counted if one.read.attempt == attempt]

    def told(self) -> list[tuple[Read, dict[str, Any]]]:
        """Each task that counts with cause, reason and log."""
        return [(one.read, told(one.read, one.state)) for one in self.counted]

    def work(self) -> dict[str, Any]:
        """How far, how fast, how long: `progress.measure` over every attempt."""
        mine = [one for one in self.counted if one.read.attempt in self.moving and not is_merge(one)]
        return measure([one.shards for one in mine], [one.state for one in mine], before=self.before)


def is_merge(one: Counted) -> bool:
    """Whether it is the task behind an array that puts the shards together."""
    return bool(one.state["index"] == one.read.data.get("merge"))


def current(reads: Sequence[Read], live: Mapping[str, str] | None) -> Current:
    """What still counts of a run's attempts, oldest first, at least one.

    A submission takes whatever is missing and not under way. So an earlier attempt's task is superseded once it has
    ended, unless it was under way when the later ones were submitted, or they found no room for its shards.
    """
    newest = reads[-1]
    later: list[Read] = []
    taken: set[int] = set()
    counted: list[list[Counted]] = []
    done = of = 0
    for read in reversed(reads):
        same = read.work == newest.work
        tasks = read.data["tasks"]
        found: list[Counted] = []
        for state in judged(read, live):
            index = state["index"]
            mine = tasks[index] if same and index < len(tasks) else ()
            one = Counted(read, state, tuple(shard for shard in mine if shard not in taken))
            if read is newest or (_under_way(state) and (live is not None or _was_live(one, later))):
                found.append(one)
            elif not same:
                continue
            elif is_merge(one):
                if not any(other.data.get("merge") is not None for other in later):
                    found.append(one)
            elif one.shards and (state["state"] == "done" or not _superseded(one, later)):
                found.append(one)
            else:  # whatever of it is left was there when a later attempt was planned
                done, of = done + len(one.shards), of + len(one.shards)
        counted.append(found)
        if same:
            later.append(read)
            taken.update(shard for task in tasks for shard in task)
    kept: list[Counted] = []
    for found in reversed(counted):
        if any(one.read is newest or one.state["state"] != "done" for one in found):
            kept += found
        else:
            whole = sum(len(one.shards) for one in found)
            done, of = done + whole, of + whole
    moving = {newest.attempt} | {one.read.attempt for one in kept if _under_way(one.state)}
    for one in kept:
        if one.read.attempt not in moving:
            done += int(shards_done(one.state, len(one.shards)))
            of += len(one.shards)
    shown = {one.read.attempt for one in kept} | {newest.attempt}
    reads = [read for read in reads if read.attempt in shown]
    return Current(tuple(kept), tuple(reads), frozenset(moving), (done, of))


def _under_way(state: Mapping[str, Any]) -> bool:
    return state["state"] in UNDER_WAY


def _was_live(one: Counted, later: Sequence[Read]) -> bool:
    """Whether the task was under way whenever a later attempt was submitted."""
    process = f"process {(one.read.data.get('process') or {}).get('pid')}"
    return all({one.state["job"], process} & set(other.data.get("live", ())) for other in later)


def _superseded(one: Counted, later: Sequence[Read]) -> bool:
    """Whether a later attempt knew that the task had ended, and had room for all that was missing."""
    return any(not _cut(other.data) and not _was_live(one, [other]) for other in later)


def _cut(data: Mapping[str, Any]) -> bool:
    """Whether more was missing than had room in the queue."""
    return bool(data.get("planned", 0) > len(data["tasks"]))
