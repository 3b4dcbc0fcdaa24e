"""Submitting work: what is missing minus what is under way, frozen into an attempt, queued or run here, followed."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from semiocity.config import Cluster
from semiocity.data import manifest, views
from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import doctor, notices, slurm, squeue
from semiocity.launch.jobs import Work, image_of
from semiocity.launch.runs import Attempt, alive, attempts, last_line, new_attempt, snapshot

# Work whose results are merged by one more task when all others have ended.
MERGED = {"pack", "stage", "reduce", "view", "generate"}
POLL_S = {"local": 0.2, "slurm": 3.0}


def submit(work: Work, cluster: Cluster, *, wait: bool = False, dry_run: bool = False) -> bool:
    """Bring `work` to the cluster. Returns True when it is known to be complete.

    Only what is missing and not already queued is submitted. With the local executor, or `wait`, the call follows
    the tasks to their end and raises UserError naming the first failure.
    """
    image = image_of(work.image, cluster)
    if cluster.executor == "local" and work.resources.nodes > 1:
        raise UserError(
            f"resources.nodes is {work.resources.nodes}: several nodes need SLURM (executor in jobs/cluster.toml)"
        )
    again = rows_to_retry(work)
    if not dry_run and complete(work) and not again:
        print(f"{describe(work)}: complete, nothing to do")
        return True
    busy = under_way(work)
    tasks = plan_tasks(work, cluster, busy, again)
    if dry_run:
        attempt = Attempt(work.run, 1)
        launch = _launch(work, cluster, image, work.run / "code" / "SNAPSHOT")
        print(slurm.sbatch_file(launch, attempt, len(tasks)), end="")
        return False
    if not tasks:
        print(f"{describe(work)}: everything that is missing is already queued or running; see `semiocity status`")
        return False
    if busy and work.shards == 0:
        raise UserError(f"{work.run.name} is already running (job {', '.join(busy)}); see `semiocity status`")
    for warning in doctor.check_submission(work, cluster):
        print(f"warning: {warning}", file=sys.stderr)
    attempt = new_attempt(work.run)
    launch = _launch(work, cluster, image, snapshot(work.run))
    data: dict[str, Any] = {
        "kind": work.kind,
        "job": work.job,
        "run": str(work.run),
        "dataset": str(work.dataset),
        "column": work.column,
        "revision": work.revision,
        "columns": work.columns,
        "executor": cluster.executor,
        "host": socket.gethostname(),
        "image": str(image) if image else None,
        "code": str(launch.code),
        "tasks": tasks,
        "merge": len(tasks) if work.kind in MERGED else None,
        "jobs": [],
        "notify": notices.settings(cluster.notify),
    }
    attempt.write(data)
    print(f"{describe(work)}: {len(tasks)} task{'s' * (len(tasks) != 1)} -> {_short(attempt.folder)}")
    if cluster.executor == "slurm":
        jobs = _queue(launch, attempt, data)
        print(f"queued as SLURM job {', '.join(squeue.whole_jobs(jobs))}")
        if not wait:
            return False
        for _ in follow_slurm(attempt, jobs):
            _progress(attempt, len(tasks))
    else:
        run_local(launch, attempt, data, cluster.local_parallelism if work.kind != "train" else 1)
    if _succeeded(work, attempt):
        if left := rows_to_retry(work):
            print(f"{describe(work)}: rows in {len(left)} shards failed for now; the same command tries them again")
        return True
    raise UserError(failure(attempt, work))


def _queue(launch: slurm.Launch, attempt: Attempt, data: dict[str, Any]) -> list[str]:
    """Queue an attempt's tasks and the merge behind them. What is queued is noted, also when the rest is refused."""
    jobs: list[str] = []

    def note(queued: Iterator[list[str]]) -> None:
        for part in queued:
            jobs.extend(part)
            attempt.write({**data, "jobs": jobs})

    try:
        note(slurm.submit(launch, attempt, range(len(data["tasks"]))))
        if data["merge"] is not None:
            light = replace(launch, resources=launch.resources.model_copy(update=_LIGHT))
            note(slurm.submit(light, attempt, [data["merge"]], after=jobs))
    except UserError:
        if not jobs:
            shutil.rmtree(attempt.folder)  # nothing came of it: the next submission takes its number
        raise
    return jobs


# One small task that merges receipts; it needs neither GPUs nor many ranks.
_LIGHT = {"nodes": 1, "ranks_per_node": 1, "gpus_per_node": 0, "cpus_per_rank": 1, "mem_gb": None}


def _launch(work: Work, cluster: Cluster, image: Path | None, code: Path) -> slurm.Launch:
    return slurm.Launch(
        name=work.run.name,
        cluster=cluster,
        resources=work.resources,
        image=image,
        code=code,
        binds=(work.run, work.dataset, *work.binds, *notices.binds(cluster.notify)),
        pwd=work.run.parents[1],
    )


def complete(work: Work) -> bool:
    """Whether the work's results are all there: receipts and results on disk decide, never exit codes."""
    match work.kind:
        case "pack" | "stage" | "reduce":
            folder = manifest.column_folder(work.dataset, work.column, work.revision)
            # Somebody may have removed a damaged shard, or added rows to the source.
            return manifest.merged(work.dataset, work.column, work.revision, work.shards) and not manifest.missing(
                folder, work.shards
            )
        case "view":
            return views.is_built(work.dataset, work.column, work.revision, work.shards)
        case "train":
            from semiocity.train.options import TrainJob, is_done

            return is_done(work.run, TrainJob.model_validate(work.job))
        case _:  # cheap to look at for the tasks themselves, which skip what is there
            return False


def _succeeded(work: Work, attempt: Attempt) -> bool:
    from semiocity.launch.status import task_states

    if work.kind in ("pack", "stage", "reduce", "view", "train"):
        return complete(work)
    return all(state["state"] == "done" for state in task_states(attempt, live={}))


def under_way(work: Work) -> dict[str, list[int]]:
    """Job id -> shards of those tasks of earlier attempts at the same work that are queued or running.

    One squeue call for all attempts.
    """
    earlier = []
    for attempt in attempts(work.run):
        if not attempt.file.exists():
            continue  # a submission that broke off before anything was queued
        data = attempt.read()
        if (data["kind"], data["column"], data["revision"]) == (work.kind, work.column, work.revision):
            earlier.append(data)
    live = squeue.states(job for data in earlier if data["executor"] == "slurm" for job in data["jobs"])
    return {
        job: data["tasks"][index] if index < len(data["tasks"]) else []
        for data in earlier
        for index, job in enumerate(data["jobs"])
        if (job in live if data["executor"] == "slurm" else data["host"] == socket.gethostname() and alive(job))
    }


def rows_to_retry(work: Work) -> list[int]:
    """Shards of a merged column that hold rows to be tried again (out of memory, I/O)."""
    if work.kind != "stage" or not complete(work):
        return []
    entries = manifest.shard_entries(work.dataset, work.column, work.revision)
    return [
        shard
        for thousand in entries.thousands(only=lambda line: line["tombstones"]["retry"])
        for shard, rows in zip(thousand.shards, thousand.facts["tombstones"]["retry"])
        if rows
    ]


def plan_tasks(
    work: Work, cluster: Cluster, busy: Mapping[str, list[int]], again: Sequence[int] = ()
) -> list[list[int]]:
    """The map from task to shards: what is missing, or to be tried `again`, minus what is pending or running."""
    if work.shards == 0:
        return [[] for _ in range(work.units)]
    held = {shard for shards in busy.values() for shard in shards}
    todo = [shard for shard in sorted({*_missing(work), *again}) if shard not in held]
    if not todo and not busy:
        return [[]]  # every receipt is there but nobody merged them: one task that finds nothing to do, then the merge
    if work.kind == "reduce":
        return [todo] if todo else []  # it needs to see every shard, whichever it writes: once is enough
    units = [list(shards) for _, shards in groupby(todo, lambda shard: shard // work.together)]
    if cluster.executor == "local":
        count = min(cluster.local_parallelism, len(units))
        return [list(chain(*units[start::count])) for start in range(count)]
    size = -(-work.resources.shards_per_task // work.together)
    return [list(chain(*units[start : start + size])) for start in range(0, len(units), size)]


def _missing(work: Work) -> list[int]:
    if work.kind == "view":
        return views.missing(views.view_folder(work.dataset, work.column) / work.revision, work.shards)
    return manifest.missing(manifest.column_folder(work.dataset, work.column, work.revision), work.shards)


# ---------------------------------------------------------------- following


def run_local(launch: slurm.Launch, attempt: Attempt, data: dict[str, Any], parallel: int) -> None:
    """Run every task on this machine, at most `parallel` at a time, bringing back those that ask for it.

    Ctrl-C lets the tasks save and stop; they go on with the next call.
    """
    waiting = deque((index, 0) for index in range(len(data["tasks"])))
    running: dict[int, tuple[Any, int]] = {}
    jobs: list[str] = [""] * (len(data["tasks"]) + (data["merge"] is not None))
    interrupted = False

    def start(index: int, restart: int) -> None:
        job = slurm.start_local(replace(launch, restart=restart), attempt, index)
        running[index] = (job, restart)
        jobs[index] = job.job_id
        attempt.write({**data, "jobs": jobs})

    while waiting or running:
        try:
            while waiting and len(running) < parallel and not interrupted:
                start(*waiting.popleft())
            for index, (job, restart) in list(running.items()):
                if job.done():
                    del running[index]
                    if attempt.requeue_file(job.job_id, restart).exists() and not interrupted:
                        if read_json(attempt.task_file(index)).get("reason") == "SIGINT":
                            # Ctrl-C reached the task, but not us: we were starting another one (see start_local).
                            interrupted = True
                            waiting.clear()
                        else:
                            waiting.append((index, restart + 1))
            _progress(attempt, len(data["tasks"]), final=not running and not waiting)
            if interrupted and not running:
                raise UserError(
                    f"stopped; what was done is kept. Run the same command again to go on ({_short(attempt.run)})"
                )
            time.sleep(POLL_S["local"])
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            waiting.clear()
            print("\nstopping: tasks save their work (Ctrl-C again leaves them to it)", file=sys.stderr)
    if data["merge"] is not None:
        start(data["merge"], 0)
        running[data["merge"]][0].wait()


def follow_slurm(attempt: Attempt, jobs: Sequence[str]) -> Iterator[None]:
    """Yield at every look at the queue until none of `jobs` is in it. A controller that is busy is asked again."""
    silent = 0
    while True:
        try:
            if not squeue.states(jobs):
                return
            silent = 0
        except UserError:
            silent += 1
            if silent > 20:
                raise
        yield
        time.sleep(POLL_S["slurm"] * (1 + silent))


def _progress(attempt: Attempt, tasks: int, final: bool = False) -> None:
    """One line that is rewritten on a terminal, and printed anew every half minute elsewhere."""
    from semiocity.launch.status import progress_line

    now = time.monotonic()
    terminal = sys.stderr.isatty()
    last = _LAST_SHOWN.get(attempt.folder, 0.0)
    if not final and now - last < (1.0 if terminal else 30.0):
        return
    _LAST_SHOWN[attempt.folder] = now
    line = progress_line(attempt, tasks)
    if terminal:
        print(f"\r\033[K{line}", end="\n" if final else "", file=sys.stderr, flush=True)
    elif final or last:
        print(line, file=sys.stderr, flush=True)


_LAST_SHOWN: dict[Path, float] = {}


def failure(attempt: Attempt, work: Work) -> str:
    """What went wrong first, with its place: for the message at the end of a followed submission."""
    from semiocity.launch.status import task_states

    failed = [state for state in task_states(attempt, live={}) if state["state"] in ("failed", "lost")]
    lines = [f"{describe(work)}: not complete"]
    for state in failed[:3]:
        lines.append(f"  task {state['index']}: {state['reason']}")
        if state["log"]:
            lines.append(f"    {last_line(Path(state['log']))}\n    {_short(Path(state['log']))}")
    if len(failed) > 3:
        lines.append(f"  and {len(failed) - 3} more")
    lines.append("  run the same command again for what is missing")
    return "\n".join(lines)


def describe(work: Work) -> str:
    """`caption of city`, for messages."""
    what = {"view": f"view {work.column}", "stage": work.column, "reduce": work.column}.get(work.kind, work.kind)
    return f"{what} of {work.dataset.name}" + ("" if work.shards else f" ({work.run.name})")


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
