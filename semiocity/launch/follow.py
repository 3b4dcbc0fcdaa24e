"""Following an attempt to its end: the loops of executor and queue, progress on the terminal, the first failure."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import ends, held, scheduler, slurm, squeue
from semiocity.launch.compact import packed_states
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt, last_line

POLL_S = {"local": 0.2, "slurm": 3.0}
ASK_S = 30.0
"""Most seconds between two looks at the queue, for whoever follows a job."""


class Interrupted(UserError):
    """Ctrl-C: what was done is kept, and nothing more is to be started."""


def run_local(launch: slurm.Launch, attempt: Attempt, data: dict[str, Any], parallel: int) -> None:
    """Run every task on this machine, at most `parallel` at a time, bringing back those that ask for it.

    Ctrl-C lets the tasks save and stop; they go on with the next call.
    """
    waiting = deque((index, 0) for index in range(len(data["tasks"])))
    running: dict[int, tuple[Any, int]] = {}
    jobs: list[str] = [""] * (len(data["tasks"]) + (data["merge"] is not None))
    interrupted = False
    retries = slurm.retries(launch.cluster, launch.resources)

    def start(index: int, restart: int) -> None:
        job = slurm.start_local(replace(launch, restart=restart), attempt, index)
        running[index] = (job, restart)
        jobs[index] = job.job_id
        attempt.write({**data, "jobs": jobs})

    while waiting or running:
        try:
            if attempt.cancelled.exists():
                waiting.clear()
            while waiting and len(running) < parallel and not interrupted:
                start(*waiting.popleft())
            for index, (job, restart) in list(running.items()):
                if job.done():
                    del running[index]
                    if interrupted:
                        continue
                    if ends.interrupted(attempt, index, job.job_id):
                        # Ctrl-C reached the task, but not us: we were starting another one (see start_local).
                        interrupted = True
                        waiting.clear()
                    elif ends.settle(attempt, index, job.job_id, restart, retries):
                        waiting.append((index, restart + 1))
            progress(attempt, final=not running and not waiting)
            if interrupted and not running:
                raise Interrupted(
                    f"stopped; what was done is kept. Run the same command again to go on ({short(attempt.run)})"
                )
            time.sleep(POLL_S["local"])
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            waiting.clear()
            print("\nstopping: tasks save their work (Ctrl-C again leaves them to it)", file=sys.stderr)
    if data["merge"] is not None and not attempt.cancelled.exists():
        start(data["merge"], 0)
        running[data["merge"]][0].wait()


def follow_slurm(
    jobs: Collection[str], finished: Callable[[], bool] = lambda: False, run: str = "RUN"
) -> Iterator[None]:
    """Yield every second until none of `jobs`, of the run of this name, is in the queue.

    The queue is asked now and then only, and every second once `finished` (by the files) says that it must be empty
    soon. A controller that is busy is asked again. Jobs that SLURM holds are named once: nobody need wait for them in
    vain.
    """
    silent = 0
    told: set[str] = set()
    pause_s, asked = POLL_S["slurm"], time.monotonic()
    while True:
        if finished() or time.monotonic() - asked >= pause_s:
            try:
                if not (seen := squeue.look(jobs)):
                    return
                silent = 0
                for kept in held.find(seen, run):
                    if kept.reason not in told:
                        told.add(kept.reason)
                        print(f"\n{run}: {kept}", file=sys.stderr, flush=True)
                pause_s = min(ASK_S, 1.5 * pause_s)
            except UserError:
                silent += 1
                pause_s = scheduler.pause(silent)
                if silent > 20:
                    raise
            asked = time.monotonic()
        yield
        time.sleep(1)


def last_task_done(attempt: Attempt, data: Mapping[str, Any]) -> bool:
    """Whether the task that runs after all others has ended well, by its file."""
    index = len(data["tasks"]) - 1 if data["merge"] is None else data["merge"]
    try:
        return bool(read_json(attempt.task_file(index))["state"] == "done")
    except (FileNotFoundError, UserError, KeyError):
        return index in packed_states(attempt)


def progress(attempt: Attempt, final: bool = False) -> None:
    """One line that is rewritten on a terminal, and printed anew every half minute elsewhere."""
    from semiocity.launch.status import progress_line

    now = time.monotonic()
    terminal = sys.stderr.isatty()
    last = _LAST_SHOWN.get(attempt.folder, 0.0)
    if not final and now - last < (1.0 if terminal else 30.0):
        return
    _LAST_SHOWN[attempt.folder] = now
    line = progress_line(attempt.run)
    if terminal:
        print(f"\r\033[K{line}", end="\n" if final else "", file=sys.stderr, flush=True)
    elif final or last:
        print(line, file=sys.stderr, flush=True)


_LAST_SHOWN: dict[Path, float] = {}


def failure(attempt: Attempt, work: Work) -> str:
    """What went wrong first, with its place: for the message at the end of a followed submission."""
    from semiocity.launch.status import read_all
    from semiocity.launch.status_tasks import FAILED, current

    told = current(read_all(attempt.run), live={}).told()
    failed = [(read.attempt.number, state) for read, state in told if state["state"] in FAILED]
    lines = [f"{describe(work)}: not complete"]
    for number, state in failed[:3]:
        which = f"attempt {number}, " if number != attempt.number else ""
        lines.append(f"  {which}task {state['index']}: {state['reason']}")
        if state["log"]:
            lines.append(f"    {last_line(Path(state['log']))}\n    {short(Path(state['log']))}")
    if len(failed) > 3:
        lines.append(f"  and {len(failed) - 3} more")
    lines.append("  run the same command again for what is missing")
    return "\n".join(lines)


def describe(work: Work) -> str:
    """`caption of city`, for messages."""
    what = {"view": f"view {work.column}", "stage": work.column, "reduce": work.column}.get(work.kind, work.kind)
    return f"{what} of {work.dataset.name}" + ("" if work.shards else f" ({work.run.name})")


def short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
