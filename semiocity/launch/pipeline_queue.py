"""Queueing a pipeline with SLURM, all of it at once.

The steps whose inputs are there are queued at once. Every other step gets a *gate*: a small job that waits for the
steps before it (`afterany`), looks at their receipts, plans the step with what is there then, and queues it
(`pipeline_gate.py`). So nobody needs to stay logged in, and what a step becomes is decided by the code that a person
would call at that moment, not by a guess. Why not guess: docs/pipelines.md.

The pipeline is a run folder like others: each gate is a task of its attempt, so status, logs and cancel know it. A step
part of which found no room in the queue gets a further gate, as a further task, that queues the rest.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.config import Cluster, Resources
from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch import facts, follow, lock, notices, scheduler, slurm, squeue, submission
from semiocity.launch.jobs import Work
from semiocity.launch.pipeline import Pipeline
from semiocity.launch.pipeline_check import places, refuse, refuse_crowd
from semiocity.launch.pipeline_plan import Planned, plan, table, to_do
from semiocity.launch.pipeline_steps import frozen
from semiocity.launch.pipeline_why import is_complete
from semiocity.launch.runs import Attempt, attempts, new_attempt, snapshot

LATER = "now+10minutes"
"""When a gate looks again that found no room and has nothing of its own to wait for."""


class Started(NamedTuple):
    """What queueing a step came to."""

    jobs: list[str]
    """All whole jobs that are at it."""
    left: bool
    """Whether something of it found no room in the queue."""


def queue(pipeline: Pipeline, cluster: Cluster, chosen: Sequence[str], code: Path | None = None) -> Attempt | None:
    """Queue the chosen steps that are not complete: those that can be planned as they are, gates for the others.

    `code` is a snapshot of this package to run instead of this package. Returns the attempt, or None when there was
    nothing to queue. Raises UserError for what the cluster would not take of any step, before anything is queued; and
    when gates of an earlier call still wait: they would queue the same steps.
    """
    run = pipeline.run
    with lock.submission(run):
        if waiting := gates_waiting(run):
            raise UserError(
                f"{run.name}: {', '.join(waiting)} of an earlier call still wait in the queue and will go on by "
                f"themselves; `semiocity status {run.name}` shows them, `semiocity cancel {run.name}` ends them"
            )
        planned = plan(pipeline, cluster, chosen)
        print(table(planned))
        todo = to_do(planned, chosen)
        if not todo:
            return None
        gate = gate_launch(run, cluster, pipeline.gate, code or run / "code" / "SNAPSHOT")
        refuse(pipeline, cluster, todo, gate)
        refuse_crowd(pipeline, cluster, todo)
        return _queue(pipeline, cluster, planned, todo, chosen, code)


def gate_launch(run: Path, cluster: Cluster, asked: Resources, code: Path) -> slurm.Launch:
    """How gates are queued. A gate needs no node for itself, and where it has a partition of its own, none of the usual
    nodes' features. By mail it tells only that it failed: steps that end well tell of themselves."""
    quiet = cluster.notify.model_copy(update={"mail_on": ["FAIL"]})
    small = {"exclusive": False, "notify": quiet} | ({"constraint": None} if asked.partition else {})
    return slurm.Launch(
        name=run.name,
        cluster=cluster.model_copy(update=small),
        resources=asked,
        image=None,  # the image has no sbatch
        code=code,
        binds=(),
        pwd=run.parents[1],
    )


def _queue(
    pipeline: Pipeline,
    cluster: Cluster,
    planned: Sequence[Planned],
    todo: Sequence[Planned],
    asked: Sequence[str],
    code: Path | None,
) -> Attempt:
    names = [p.step.name for p in todo]
    reserved = {p.step.name: places(p) for p in todo}
    attempt = new_attempt(pipeline.run)
    steps = [frozen(p.step, attempt.files) for p in planned]
    shutil.copyfile(pipeline.file, attempt.files / pipeline.file.name)
    launch = gate_launch(pipeline.run, cluster, pipeline.gate, code or snapshot(pipeline.run))
    index = {step.name: number for number, step in enumerate(steps)}
    data: dict[str, Any] = {
        "kind": "pipeline",
        "attempt": attempt.number,
        "job": {
            "file": str(pipeline.file.absolute()),
            "sets": list(pipeline.sets),
            "asked": list(asked),
            "steps": [step.as_json() for step in steps],
            "parents": {name: list(parents) for name, parents in pipeline.parents.items()},
            "chosen": names,
            "gate": pipeline.gate.model_dump(mode="json"),
        },
        "run": str(pipeline.run),
        "dataset": str(_dataset(pipeline, planned)),
        "column": "",
        "revision": "",
        "columns": {},
        "executor": "slurm",
        "host": socket.gethostname(),
        "image": None,
        "cluster": cluster.model_dump(mode="json"),
        "notify": {**notices.settings(cluster.notify), "retries": slurm.retries(cluster, pipeline.gate)},
        "code": str(launch.code),
        "tasks": [[] for _ in steps],
        "merge": None,
        "jobs": [""] * len(steps),
        "steps": {},
    }
    write_json(attempt.folder / "environment.json", facts.environment(None))
    attempt.write(data)
    try:
        for p in planned:
            name = p.step.name
            reserved.pop(name, None)
            if name in names and p.standing.state == "waits":
                after = [job for parent in p.parents for job in jobs_of(data, parent)]
                [queued] = slurm.submit(launch, attempt, range(index[name], index[name] + 1), after=after)
                data["jobs"][index[name]] = queued[0]
                attempt.write(data)
                print(f"{name}: waits as SLURM job {data['jobs'][index[name]]}")
                continue
            started = Started([], False)
            if name in names:
                assert p.standing.work is not None
                started = Started(squeue.whole_jobs(p.standing.jobs), False)
                if p.standing.state == "ready":
                    # One place more: what finds no room of this step needs a gate.
                    spare = sum(reserved.values()) + 1
                    started = start(p.standing.work, cluster, p.standing.jobs, spare=spare, code=code)
            if p.standing.work is not None:
                data["steps"][name] = noted(p.standing.work, started)
            said = f"queued: {', '.join(started.jobs)}" if started.jobs else p.standing.why or "complete"
            write_json(attempt.task_file(index[name]), {"state": "done", "step": name, "job": "", "said": said})
            attempt.write(data)
            if started.left:
                go_on(attempt, data, launch, name)
    except scheduler.Full as error:
        raise UserError(
            f"{name}: {error}\nthe site lets you have no more jobs in the queue. With max_submitted in "
            "jobs/cluster.toml places are kept for gates, and a pipeline that cannot have them is refused as a whole. "
            "What was queued stays; the same command goes on from there"
        ) from error
    except UserError as error:
        raise UserError(f"{name}: {error}\nwhat was queued stays; the same command goes on from there") from error
    return attempt


def start(
    work: Work, cluster: Cluster, busy: Sequence[str] = (), *, spare: int = 0, code: Path | None = None
) -> Started:
    """Queue a step's work. `busy` are the jobs that were at it before; `spare` places of the site's limit are left to
    others. Raises scheduler.Full when nothing of it is queued and nothing finds room."""
    before = {attempt.number for attempt in attempts(work.run)}
    done = submission.submit(work, cluster, replace=work.kind != "train", spare=spare, code=code)
    made = [attempt.read() for attempt in attempts(work.run) if attempt.number not in before]
    jobs = squeue.whole_jobs(job for job in [*busy, *(job for data in made for job in data["jobs"])] if job)
    return Started(jobs, not done and (not made or any(map(submission.cut, made))))


def noted(work: Work, started: Started) -> dict[str, Any]:
    """What attempt.json of a pipeline says of a step that was queued."""
    missing = len(submission.missing(work)) if work.shards else None
    return {"jobs": started.jobs, "left": started.left, "missing": missing, "work": facts.of_work(work)}


def go_on(attempt: Attempt, data: dict[str, Any], launch: slurm.Launch, name: str) -> None:
    """Queue a further gate for a step part of which found no room, behind the jobs that have some.

    Raises scheduler.Full when there is none for the gate either; `data` is as it was then.
    """
    first = index_of(data, name)
    after = data["steps"][name]["jobs"]
    if not after:
        later = {"sbatch": {**launch.cluster.sbatch, "begin": LATER}}
        launch = slurm.Launch(**{**vars(launch), "cluster": launch.cluster.model_copy(update=later)})
    number = len(data["tasks"])
    data["tasks"].append([])
    data["jobs"].append("")
    data["job"]["steps"].append(data["job"]["steps"][first])
    attempt.write(data)
    try:
        [queued] = slurm.submit(launch, attempt, range(number, number + 1), after=after)
    except UserError:
        for entries in (data["tasks"], data["jobs"], data["job"]["steps"]):
            entries.pop()
        attempt.write(data)
        raise
    data["jobs"][number] = queued[0]
    attempt.write(data)
    print(f"{name}: what found no room waits as SLURM job {queued[0]}", flush=True)


def _dataset(pipeline: Pipeline, planned: Sequence[Planned]) -> Path:
    """The dataset of the last step that has one: pictures of prompts are about none."""
    drafts = [pipeline.facts[p.step.name].draft for p in planned]
    return next((draft.dataset for draft in reversed(drafts) if draft.dataset != draft.run), pipeline.run)


def index_of(data: Mapping[str, Any], name: str) -> int:
    """The task that is a step's newest gate."""
    steps = data["job"]["steps"]
    return max(number for number, step in enumerate(steps) if step["name"] == name)


def jobs_of(data: Mapping[str, Any], name: str) -> list[str]:
    """What a dependant of a step has to wait for: its jobs where they are known, and its gate until all of them are."""
    known = data["steps"].get(name)
    gate = data["jobs"][index_of(data, name)]
    return [*(known["jobs"] if known else []), *([gate] if gate and (not known or known["left"]) else [])]


def known_work(data: Mapping[str, Any]) -> Work:
    """A step's work, from what was noted of it when it was queued."""
    return facts.work_of(data, Path(data["run"]), Path(data["dataset"]))


def gates_waiting(run: Path) -> list[str]:
    """Names of the steps whose gates of earlier attempts are still queued or running. One squeue call."""
    found: dict[str, str] = {}
    for attempt in attempts(run):
        if attempt.file.exists():
            data = attempt.read()
            found |= {job: step["name"] for job, step in zip(data["jobs"], data["job"]["steps"]) if job}
    live = squeue.states(found)
    return sorted({name for job, name in found.items() if job in live})


# ---------------------------------------------------------------- following


def follow_all(attempt: Attempt) -> bool:
    """Wait until no gate and no step is queued or running. Returns whether every step is complete."""
    seen: set[str] = set()
    said: set[str] = set()
    while True:
        data = attempt.read()
        jobs = {job for job in data["jobs"] if job} | {job for step in data["steps"].values() for job in step["jobs"]}
        if jobs == seen:  # a gate may have queued something between two looks
            break
        seen = jobs
        for _ in follow.follow_slurm(jobs, lambda: _seems_over(attempt)):
            for name, step in attempt.read()["steps"].items():
                if name not in said and step["jobs"]:
                    print(f"{name}: job {', '.join(step['jobs'])}", file=sys.stderr, flush=True)
                said.add(name)
    left = [name for name in data["job"]["chosen"] if not _is_there(data, name)]
    for name in left:
        print(f"{name}: not complete; `semiocity logs {attempt.run.name}` or its own run says why")
    return not left


def _seems_over(attempt: Attempt) -> bool:
    """Whether, by the files, every step was queued and the task that ends it has ended well."""
    data = attempt.read()
    if any(name not in data["steps"] or data["steps"][name]["left"] for name in data["job"]["chosen"]):
        return False
    runs = {step["work"]["run"] for step in data["steps"].values() if step["jobs"]}
    last = [[a for a in attempts(Path(run)) if a.file.exists()][-1] for run in runs]
    return all(follow.last_task_done(a, a.read()) for a in last)


def _is_there(data: Mapping[str, Any], name: str) -> bool:
    known = data["steps"].get(name)
    return known is not None and is_complete(known_work(known["work"]))
