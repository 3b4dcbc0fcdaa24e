"""`semiocity logs RUN`: the end of the log that matters, the failing task's first. Standard library only."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.launch import squeue
from semiocity.launch.compact import packed_log
from semiocity.launch.first_cause import first_cause
from semiocity.launch.runs import Attempt, attempts
from semiocity.launch.status_tasks import FAILED, Read, current, task_states

FIRST = {"failed": 0, "lost": 1, "cancelled": 2, "stopped": 3, "running": 4, "queued": 5, "done": 6}
"""Which task is shown when none is named: the first in this order."""
TROUBLE = re.compile(r"^(Traceback \(most recent call last\):|semiocity: |\w*(Error|Exception)\b)", re.MULTILINE)
TAIL_BYTES = 1 << 18


def show(run: Path, *, task: int | None, rank: int | None, attempt: int | None, lines: int, follow: bool) -> int:
    """Print the last `lines` lines of a task's log under one line on how it stands; with `follow` go on until it ends.

    Without `task` and `attempt`, of every attempt's tasks that still count the one that matters most. Exit status 1
    when the task shown has failed.
    """
    made = _attempts(run)
    if attempt is None and task is None:
        states = _current(made)
    else:
        one = made[-1] if attempt is None else _numbered(made, attempt)
        states = [(one, state) for state in _states(one)]
    chosen, state = _task(states, task, run)
    head = f"{run.name}, attempt {chosen.number}, task {state['index']} ({state['state']})"
    print(head + (f": {state['reason']}" if state["reason"] else ""))
    failed = [(of, s["index"]) for of, s in states if s["state"] in FAILED]
    if len(failed) > 1 and task is None:
        print(_failed(failed))
    log = _log(chosen, state, rank)
    if log is None and (text := packed_log(chosen, state["job"], rank or 0)):
        print("\n".join(text.splitlines()[-lines:]))
        return 0
    if log is None:
        if not follow:
            print("it has no log" + (" yet" if state["state"] in ("queued", "running") else ""))
            return 1 if failed else 0
        log = _wait_for_log(chosen, state, rank)
    print(f"==> {os.path.relpath(log)} <==")
    for line in last_lines(log, lines):
        print(line)
    if follow:
        for text in _follow(log, lambda: _live(chosen, state["index"])):
            print(text, end="", flush=True)
        state = _states(chosen)[state["index"]]
    return 1 if state["state"] in FAILED else 0


def _attempts(run: Path) -> list[Attempt]:
    found = [attempt for attempt in attempts(run) if attempt.file.exists()]
    if not found:
        raise UserError(f"{run}: no run folder of ours; `semiocity status` lists them")
    return found


def _numbered(found: Sequence[Attempt], number: int) -> Attempt:
    for attempt in found:
        if attempt.number == number:
            return attempt
    raise UserError(f"{found[0].run}: no attempt {number}; there are {', '.join(str(a.number) for a in found)}")


def _states(attempt: Attempt) -> list[dict[str, Any]]:
    return task_states(attempt, _queue([attempt.read()]))


def _current(made: Sequence[Attempt]) -> list[tuple[Attempt, dict[str, Any]]]:
    reads = [Read.of(attempt) for attempt in made]
    now = current(reads, _queue([read.data for read in reads]))
    return [(read.attempt, state) for read, state in now.told()]


def _queue(found: Sequence[Mapping[str, Any]]) -> Mapping[str, str] | None:
    """What squeue says of the jobs of attempts; None when it cannot be asked: the files are believed."""
    try:
        return squeue.states(job for data in found if data["executor"] == "slurm" for job in data["jobs"] if job)
    except UserError:
        return None


def _task(
    states: list[tuple[Attempt, dict[str, Any]]], wanted: int | None, run: Path
) -> tuple[Attempt, dict[str, Any]]:
    if not states:
        raise UserError(f"{run}: nothing was queued")
    if wanted is None:
        return min(states, key=lambda one: (FIRST.get(one[1]["state"], 9), one[0].number, one[1]["index"]))
    if not 0 <= wanted < len(states):
        raise UserError(f"{run.name}: no task {wanted}; attempt {states[0][0].number} has 0 to {len(states) - 1}")
    return states[wanted]


def _failed(found: Sequence[tuple[Attempt, int]]) -> str:
    """`tasks that failed: 3, 4 (--task N)`, with their attempts where these are several."""
    several = len({attempt for attempt, _ in found}) > 1
    names = [f"{attempt.number}/{index}" if several else str(index) for attempt, index in found[:20]]
    how = "as attempt/task; --attempt N --task N" if several else f"--attempt {found[0][0].number} --task N"
    return f"tasks that failed: {', '.join(names)}{' …' if len(found) > 20 else ''} ({how})"


def _log(attempt: Attempt, state: Mapping[str, Any], rank: int | None) -> Path | None:
    """The log of a rank; without one, of the rank that failed first."""
    logs = rank_logs(attempt, state["job"])
    if rank is not None:
        if logs and rank not in logs:
            raise UserError(
                f"{attempt.run.name}: task {state['index']} has no log of rank {rank}; ranks: {_span(logs)}"
            )
        return logs.get(rank)
    if state["state"] in FAILED and len(logs) > 1:
        log, said = first_failure(attempt, state["job"], logs)
        print(said)
        return log
    return logs[min(logs)] if logs else None


def rank_logs(attempt: Attempt, job: str) -> dict[int, Path]:
    """Rank → log of a task."""
    pattern = re.compile(rf"{re.escape(job)}_(\d+)_log\.out")
    names = (pattern.fullmatch(path.name) for path in attempt.logs.glob(f"{job}_*_log.out")) if job else ()
    return {int(match[1]): attempt.logs / match[0] for match in sorted(filter(None, names), key=lambda m: m[0])}


def first_failure(attempt: Attempt, job: str, logs: Mapping[int, Path]) -> tuple[Path, str]:
    """The log of the rank that failed first, and why it did; the others tell only that it went away.

    Ranks note their ends (`first_cause.py`). Where they could not, the log decides that ended first with an error.
    """
    if cause := first_cause(attempt, job):
        return cause.log or logs[min(logs)], f"first: {cause}"
    troubled = {rank: path for rank, path in logs.items() if TROUBLE.search("\n".join(last_lines(path, 400)))}
    ended = {rank: path.stat().st_mtime for rank, path in troubled.items()}
    first = min(ended, key=lambda rank: (ended[rank], rank)) if ended else min(logs)
    return logs[first], f"first: rank {first}, whose log ended before the others'"


def last_lines(log: Path, lines: int) -> list[str]:
    """The last lines of a file, of which only the end is read."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - max(TAIL_BYTES, 400 * lines)))
        return file.read().decode("utf-8", "replace").splitlines()[-lines:]


def _span(logs: Mapping[int, Path]) -> str:
    return f"{min(logs)} to {max(logs)}" if len(logs) > 1 else str(min(logs))


def _live(attempt: Attempt, index: int) -> bool:
    return _states(attempt)[index]["state"] in ("running", "queued", "stopped")


def _wait_for_log(attempt: Attempt, state: Mapping[str, Any], rank: int | None) -> Path:
    while True:
        now = _states(attempt)[state["index"]]
        if log := _log(attempt, now, rank):
            return log
        if now["state"] not in ("running", "queued"):
            raise UserError(f"{attempt.run.name}: task {state['index']} ended without a log: {now['reason']}")
        time.sleep(2)


def _follow(log: Path, live: Callable[[], bool], pause_s: float = 0.5, ask_s: float = 5.0) -> Iterator[str]:
    """What is added to a log, until the task has ended. Whether it has is asked every `ask_s` seconds only."""
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        asked, goes_on = time.monotonic(), True
        while True:
            if text := file.read():
                yield text
            elif not goes_on:
                return
            if goes_on and time.monotonic() - asked > ask_s:
                asked, goes_on = time.monotonic(), live()
                continue  # what was written before it ended
            time.sleep(pause_s if goes_on else 0)
