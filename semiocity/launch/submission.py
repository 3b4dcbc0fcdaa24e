"""Submitting work: what is missing minus what is under way, frozen into an attempt, queued or run here, followed."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as with_
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from semiocity.config import Cluster
from semiocity.data import manifest, views
from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch import (
    bad_nodes,
    doctor,
    equipment_check,
    estimate,
    facts,
    identity,
    limits,
    lock,
    memory,
    notices,
    scheduler,
    sharing,
    sizing,
    slurm,
    squeue,
    wandb_check,
)
from semiocity.launch.compact import compact
from semiocity.launch.follow import describe, failure, follow_slurm, last_task_done, progress, run_local, short
from semiocity.launch.jobs import Work, image_of
from semiocity.launch.queued import UnderWay, under_way
from semiocity.launch.runs import Attempt, new_attempt, snapshot

# Work whose results are merged by one more task when all others have ended.
MERGED = {"pack", "stage", "reduce", "view", "generate", "export"}


def submit(
    work: Work,
    cluster: Cluster,
    *,
    wait: bool = False,
    dry_run: bool = False,
    replace: bool = False,
    code: Path | None = None,
    after: tuple[str, ...] = (),
    spare: int = 0,
) -> bool:
    """Bring `work` to the cluster. Returns True when it is known to be complete.

    Only what is missing and not already queued is submitted. With the local executor, or `wait`, the call follows
    the tasks to their end and raises UserError naming the first failure. `replace` lets the run's name stand for other
    arguments from now on; `code` is a snapshot of this package to run instead of this package; `after` are SLURM jobs
    to wait for in the queue, however they end. Of the places that the site's `max_submitted` allows `spare` are left to
    others; scheduler.Full is raised when none is left and nothing of the work is under way.
    """
    if dry_run:
        print(dry_run_of(work, cluster), end="")
        return False
    work, chosen = memory.settle(work, cluster)
    for line in [*chosen, *_remarks(work)]:
        print(line)
    image = check(work, cluster)
    while True:
        if complete(work) and not rows_to_retry(work):
            print(f"{describe(work)}: complete, nothing to do")
            return True
        if cluster.shared_group:
            sharing.share(cluster.shared_group, work.run, work.dataset, *(work.dataset / "plans").glob("**/"))
        with lock.submission(work.run):
            submitted = _submit(work, cluster, image, replace, code, after, spare)
        if isinstance(submitted, UnderWay):
            if not (wait and submitted.queued):
                return False
            print("waiting for them")
            for _ in follow_slurm(submitted.queued, run=work.run.name):
                pass
            continue  # to what they may have left
        attempt, launch, left, beside = submitted
        data = attempt.read()
        if cluster.executor == "slurm":
            if not wait:
                return False
            for _ in follow_slurm([*data["jobs"], *beside], partial(last_task_done, attempt, data), work.run.name):
                progress(attempt)
        else:
            run_local(launch, attempt, data, cluster.local_parallelism if work.kind != "train" else 1)
            compact(attempt)
        if not left or not _all_done(attempt):
            break  # what failed would only fail again, and take the place of what had none
    if _succeeded(work, attempt):
        if again := rows_to_retry(work):
            print(f"{describe(work)}: rows in {len(again)} shards failed for now; the same command tries them again")
        return True
    raise UserError(failure(attempt, work))


def _remarks(work: Work) -> list[str]:
    """What is odd about work, but may be meant."""
    if work.kind != "train":
        return []
    from semiocity.train import schedule
    from semiocity.train.optimizer_options import OptimizerOptions

    return schedule.notes(OptimizerOptions.model_validate(work.job["optimizer"]), work.job["steps"])


def check(work: Work, cluster: Cluster) -> Path | None:
    """What can be said of work without looking at the queue; returns its image. Raises UserError."""
    image = image_of(work.image, cluster)
    if cluster.executor == "local" and work.resources.nodes > 1:
        raise UserError(
            f"resources.nodes is {work.resources.nodes}: several nodes need SLURM (executor in jobs/cluster.toml)"
        )
    if work.kind == "train":
        wandb_check.check(work.job.get("wandb"), image, cluster)
        equipment_check.check(work.job, image, cluster)
    return image


def refuse_request(work: Work, cluster: Cluster, image: Path | None, code: Path | None = None) -> None:
    """UserError in sbatch's own words when the cluster would not take the job, or the merge behind it where that asks
    for something else: a partition of its own, or no GPUs where the job has some."""
    draft = _launch(work, cluster, image, code or work.run / "code" / "SNAPSHOT")
    if reason := scheduler.refusal(slurm.sbatch_file(draft, Attempt(work.run, 1), 1) + "\n"):
        raise UserError(f"{describe(work)}: the cluster would not take this job, so nothing was queued: {reason}")
    if work.kind not in MERGED or not (work.resources.gpus_per_node or cluster.light_partition):
        return
    if reason := scheduler.refusal(slurm.sbatch_file(light(draft), Attempt(work.run, 1), 1) + "\n"):
        raise UserError(
            f"{describe(work)}: the cluster would not take the job without GPUs that merges its results, so nothing "
            f"was queued: {reason}; light_partition in jobs/cluster.toml names a partition for such jobs"
        )


def _submit(
    work: Work,
    cluster: Cluster,
    image: Path | None,
    replace: bool,
    code: Path | None,
    after: tuple[str, ...],
    spare: int,
) -> tuple[Attempt, slurm.Launch, int, list[str]] | UnderWay:
    """Plan, freeze and queue one attempt, with the run's submission lock held. Returns the attempt, how many planned
    tasks found no room in the queue, and the jobs of earlier attempts that are at the rest; or what is under way, when
    that is everything that is missing."""
    busy = under_way(work, limited=cluster.executor == "slurm" and cluster.max_submitted is not None)
    if not replace:
        identity.refuse_another(work, busy.jobs)
    if busy.tasks and work.shards == 0:
        raise UserError(f"{work.run.name} is already running (job {', '.join(busy.tasks)}); see `semiocity status`")
    for attempt in busy.over:
        compact(attempt)
    for kept in busy.held:
        print(f"warning: {describe(work)}: {kept}", file=sys.stderr)
    room = _room(cluster, work, busy, spare)
    if room is not None and room < 1:
        full = (
            f"you have {busy.submitted} jobs in the queue, and max_submitted in jobs/cluster.toml is "
            f"{cluster.max_submitted}; the same command queues what is missing when some have ended"
        )
        if not busy.queued:
            raise scheduler.Full(f"{describe(work)}: nothing was queued: {full}")
        print(f"{describe(work)}: the rest has to wait: {full}")
        return busy
    tasks = plan_tasks(work, cluster, busy.tasks, rows_to_retry(work), room)
    if not tasks:
        print(f"{describe(work)}: everything that is missing is already queued or running; see `semiocity status`")
        return busy
    if cluster.executor == "slurm":
        refuse_request(work, cluster, image, code)
    late = limits.warning(work) if cluster.executor == "slurm" else None
    for warning in [*doctor.check_submission(work, cluster), *([late] if late else [])]:
        print(f"warning: {warning}", file=sys.stderr)
    attempt = new_attempt(work.run)
    excluded = bad_nodes.of_run(work.run) if cluster.executor == "slurm" else {}
    for node, why in excluded.items():
        print(f"keeping away from {node}: {why}")
    launch = with_(
        _launch(work, cluster, image, code or snapshot(work.run, compiled=image is not None)), exclude=tuple(excluded)
    )
    planned = len(tasks)
    work = _with_copies(work, attempt.files)
    data: dict[str, Any] = {
        **facts.of_work(work),
        "executor": cluster.executor,
        "cluster": cluster.model_dump(mode="json"),
        "host": socket.gethostname(),
        "user": squeue.own_name(),
        "image": str(image) if image else None,
        "code": str(launch.code),
        "tasks": tasks[:room],
        "planned": planned,
        "merge": len(tasks[:room]) if work.kind in MERGED else None,
        "jobs": [],
        "live": sorted(busy.jobs),
        "excluded": excluded,
        "notify": {**notices.settings(cluster.notify), "retries": slurm.retries(cluster, work.resources)},
    }
    if cluster.executor == "local":
        data["process"] = lock.myself()
    write_json(attempt.folder / "environment.json", facts.environment(image))
    attempt.write(data)
    if cluster.executor == "slurm":
        _queue(launch, attempt, data, after, busy.queued)
    left = planned - len(data["tasks"])
    count = len(data["tasks"])
    print(f"{describe(work)}: {count} task{'s' * (count != 1)} -> {short(attempt.folder)}")
    if cluster.executor == "slurm":
        print(f"queued as SLURM job {', '.join(squeue.whole_jobs(data['jobs']))}")
    if left:
        print(
            f"{left} more tasks found no room: the site lets you have no more jobs in the queue. Run the same command "
            "again later; it queues what is missing then (with max_submitted in jobs/cluster.toml tasks are made "
            "longer, so that all fit)"
        )
    return attempt, launch, left, busy.queued


def _with_copies(work: Work, folder: Path) -> Work:
    """The work with copies of the user's files in `folder`, so that editing one later changes nothing queued."""
    if not work.files:
        return work
    folder.mkdir()
    copies = {key: folder / f"{key}{file.suffix}" for key, file in work.files.items()}
    for key, copy in copies.items():
        shutil.copyfile(work.files[key], copy)
    return with_(work, files=copies, job=work.job | {key: str(copy) for key, copy in copies.items()})


def cut(data: Mapping[str, Any]) -> bool:
    """Whether something of an attempt found no room in the queue: tasks, or the merge behind them."""
    return bool(data["planned"] > len(data["tasks"]) or (data["kind"] in MERGED and data["merge"] is None))


def _room(cluster: Cluster, work: Work, busy: UnderWay, spare: int) -> int | None:
    """How many tasks the site's limit lets us queue now, the merge and `spare` others beside them; None without a
    limit."""
    if cluster.executor != "slurm" or cluster.max_submitted is None:
        return None
    return cluster.max_submitted - busy.submitted - (work.kind in MERGED) - spare


def dry_run_of(work: Work, cluster: Cluster) -> str:
    """The sbatch files that would be submitted, and in comments how much that is. Asks and writes nothing.

    What the merge waits for is known when the rest is queued: JOB1 stands for the first of these sbatch files.
    """
    work, chosen = memory.settle(work, cluster)
    for line in [*chosen, *_remarks(work)]:
        print(line, file=sys.stderr)
    image = check(work, cluster)
    tasks = plan_tasks(work, cluster, {}, rows_to_retry(work))
    attempt = Attempt(work.run, 1)
    launch = _launch(work, cluster, image, work.run / "code" / "SNAPSHOT")
    longest = cluster.max_array or 1001
    sizes = [min(longest, len(tasks) - first) for first in range(0, len(tasks), longest)]
    texts = [slurm.sbatch_file(launch, attempt, size, number * longest) for number, size in enumerate(sizes)]
    if work.kind in MERGED:
        before = [f"JOB{number}" for number in range(1, len(sizes) + 1)]
        texts.append(slurm.sbatch_file(light(launch), attempt, 1, len(tasks), after=before))
    summary = estimate.summary(work, tasks, sizing.measured_s(work) if work.shards else None)
    return "\n\n".join([*texts, summary]) + "\n"


def _queue(
    launch: slurm.Launch, attempt: Attempt, data: dict[str, Any], after: tuple[str, ...], beside: Sequence[str]
) -> None:
    """Queue an attempt's tasks, and the merge behind them and behind `beside`, the jobs of earlier attempts at the same
    work: otherwise it would not find their shards. What is queued is noted, also when the rest is refused; at the
    site's limit the attempt is cut to what was taken."""
    jobs: list[str] = data["jobs"]

    def note(queued: Iterator[list[str]]) -> None:
        for part in queued:
            jobs.extend(part)
            attempt.write(data)

    try:
        try:
            note(slurm.submit(launch, attempt, range(len(data["tasks"])), after))
        except scheduler.Full:
            if not jobs:
                raise
            del data["tasks"][len(jobs) :]
            data["merge"] = None if data["merge"] is None else len(jobs)
            attempt.write(data)
        if data["merge"] is not None:
            try:
                behind = (*jobs, *beside)
                note(slurm.submit(light(launch), attempt, range(data["merge"], data["merge"] + 1), after=behind))
            except scheduler.Full:  # the next submission finds every shard made, and merges
                data["merge"] = None
                attempt.write(data)
    except UserError as error:
        if not jobs:
            shutil.rmtree(attempt.folder)  # nothing came of it: the next submission takes its number
            raise
        queued = ", ".join(squeue.whole_jobs(jobs))
        raise UserError(
            f"{error}\n  queued before that: {len(jobs)} of {len(data['tasks'])} tasks, as job {queued}. Run the same "
            "command again: it queues what is missing and not in the queue yet"
        ) from None


def light(launch: slurm.Launch) -> slurm.Launch:
    """For the task that merges receipts: it needs neither GPUs nor many ranks nor a node for itself, and where such
    jobs have a partition of their own, none of the usual nodes' features."""
    small: dict[str, Any] = {"nodes": 1, "ranks_per_node": 1, "gpus_per_node": 0, "cpus_per_rank": 1, "mem_gb": None}
    site: dict[str, Any] = {"exclusive": False}
    if launch.cluster.light_partition:
        small["partition"], site["constraint"] = launch.cluster.light_partition, None
    return with_(
        launch,
        resources=launch.resources.model_copy(update=small),
        cluster=launch.cluster.model_copy(update=site),
    )


def _launch(work: Work, cluster: Cluster, image: Path | None, code: Path) -> slurm.Launch:
    return slurm.Launch(
        name=work.run.name,
        cluster=cluster,
        resources=work.resources,
        image=image,
        code=code,
        binds=(work.run, work.dataset, *notices.binds(cluster.notify), *work.binds),
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
        case "export":
            from semiocity.data.export import engine, wish

            return engine.is_finished(wish.Wish.from_json(work.job["export"]), work.job["inputs"])
        case "train":
            from semiocity.train.options import TrainJob, is_done

            return is_done(work.run, TrainJob.model_validate(work.job))
        case _:  # cheap to look at for the tasks themselves, which skip what is there
            return False


def _all_done(attempt: Attempt) -> bool:
    from semiocity.launch.status_tasks import task_states

    return all(state["state"] == "done" for state in task_states(attempt, live={}))


def _succeeded(work: Work, attempt: Attempt) -> bool:
    if work.kind in ("pack", "stage", "reduce", "view", "export", "train"):
        return complete(work)
    return _all_done(attempt)


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
    work: Work,
    cluster: Cluster,
    busy: Mapping[str, list[int]],
    again: Sequence[int] = (),
    room: int | None = None,
) -> list[list[int]]:
    """The map from task to shards: what is missing, or to be tried `again`, minus what is pending or running (`busy`).

    `room` is how many tasks the site lets us queue: where the job does not fix them, tasks become longer to fit.
    """
    if work.shards == 0:
        return [[] for _ in range(work.units)]
    held = {shard for shards in busy.values() for shard in shards}
    todo = [shard for shard in sorted({*missing(work), *again}) if shard not in held]
    if not todo and not busy:
        return [[]]  # every receipt is there but nobody merged them: one task that finds nothing to do, then the merge
    if work.kind == "reduce":
        return [todo] if todo else []  # it needs to see every shard, whichever it writes: once is enough
    units = [list(shards) for _, shards in groupby(todo, lambda shard: shard // work.together)]
    if cluster.executor == "local":
        count = min(cluster.local_parallelism, len(units))
        return [list(chain(*units[start::count])) for start in range(count)]
    shard_s = sizing.measured_s(work) if work.resources.shards_per_task is None else None
    size = -(-sizing.shards_per_task(work.resources, shard_s, len(todo), room) // work.together)
    return [list(chain(*units[start : start + size])) for start in range(0, len(units), size)]


def missing(work: Work) -> list[int]:
    """Shards of the work that are not there."""
    if work.kind == "view":
        return views.missing(views.view_folder(work.dataset, work.column) / work.revision, work.shards)
    if work.kind == "export":
        from semiocity.data.export import engine, wish

        return engine.missing(wish.Wish.from_json(work.job["export"]), work.job["inputs"])
    return manifest.missing(manifest.column_folder(work.dataset, work.column, work.revision), work.shards)
