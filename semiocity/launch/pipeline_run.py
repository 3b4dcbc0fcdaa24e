"""Doing a pipeline: what is missing or out of date, on this machine step by step, or queued with SLURM all at once.

On a cluster the steps whose inputs are there are queued at once. Every other step gets a *gate*: a small job that waits
for the steps before it (`afterany`), looks at their receipts, plans the step with what is there then, and queues it
(`pipeline_gate.py`). So nobody needs to stay logged in, and what a step becomes is decided by the code that a person
would call at that moment, not by a guess. Why not guess: docs/pipelines.md.

The pipeline is a run folder like others: each gate is a task of its attempt, so status, logs and cancel know it.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch import facts, follow, lock, slurm, squeue, submission
from semiocity.launch.jobs import Work
from semiocity.launch.pipeline import Pipeline
from semiocity.launch.pipeline_steps import Step, build, frozen
from semiocity.launch.pipeline_why import Standing, is_complete, look
from semiocity.launch.runs import Attempt, attempts, new_attempt, snapshot


@dataclass(frozen=True)
class Planned:
    """A step and where it stands."""

    step: Step
    standing: Standing
    parents: tuple[str, ...]


def plan(pipeline: Pipeline, cluster: Cluster, chosen: Sequence[str]) -> list[Planned]:
    """Where each step stands, in order.

    Raises UserError when a chosen step needs one that is neither chosen nor complete.
    """
    found: dict[str, Planned] = {}
    needed = {parent for name in chosen for parent in pipeline.parents[name]}
    for step in pipeline.steps:
        parents = pipeline.parents[step.name]
        if step.name not in chosen and step.name not in needed:
            standing = Standing("left out", "not chosen")
        elif waits := [p for p in parents if p in chosen and found[p].standing.state != "complete"]:
            standing = Standing("waits", f"after {', '.join(waits)}")
        else:
            standing = look(step, cluster)
        if step.name not in chosen and standing.state not in ("complete", "left out"):
            wants = [name for name in chosen if step.name in pipeline.parents[name]]
            raise UserError(
                f"{pipeline.file}: {', '.join(wants)} needs {step.name}, which is not complete "
                f"({standing.why}) and not chosen; choose it too"
            )
        found[step.name] = Planned(step, standing, parents)
    return list(found.values())


def table(planned: Sequence[Planned]) -> str:
    """The plan for a person."""
    rows = [(p.step.name, p.step.kind, p.standing.state, p.standing.why) for p in planned]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[3]]).rstrip() for row in rows
    )


def as_json(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """The plan as JSON."""
    return [
        {
            "step": p.step.name,
            "kind": p.step.kind,
            "file": str(p.step.file),
            "state": p.standing.state,
            "why": p.standing.why,
            "after": list(p.parents),
            "jobs": squeue.whole_jobs(p.standing.jobs) if p.standing.jobs else [],
        }
        for p in planned
    ]


# ---------------------------------------------------------------- on this machine


def run_here(pipeline: Pipeline, cluster: Cluster, chosen: Sequence[str]) -> bool:
    """Do the chosen steps one after the other. A step that fails keeps those from starting that need it; others go on.

    Returns whether all are complete.
    """
    broken: dict[str, str] = {}
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        began = time.monotonic()
        if held := [parent for parent in pipeline.parents[name] if parent in broken]:
            broken[name] = f"not started: {', '.join(held)} is not complete"
            print(f"    {broken[name]}\n")
            continue
        try:
            standing = look(pipeline.step(name), cluster)
            if standing.state == "complete":
                print("    complete, nothing to do\n")
                continue
            print(f"    {standing.why}", flush=True)
            assert standing.work is not None
            submission.submit(standing.work, cluster, wait=True, replace=standing.work.kind != "train")
            if not is_complete(build(pipeline.step(name))):
                raise UserError(f"{name}: not complete; run the same command again for what is missing")
        except follow.Interrupted:
            raise
        except UserError as error:
            broken[name] = str(error)
            print(f"semiocity: {error}\n", file=sys.stderr)
            continue
        print(f"    {time.monotonic() - began:.0f} s\n", flush=True)
    for name, reason in broken.items():
        print(f"{name}: {reason.splitlines()[0]}")
    return not broken


# ---------------------------------------------------------------- on a cluster


def queue(pipeline: Pipeline, cluster: Cluster, chosen: Sequence[str]) -> Attempt | None:
    """Queue the chosen steps that are not complete: those that can be planned as they are, gates for the others.

    Returns the attempt, or None when there was nothing to queue. Raises UserError when gates of an earlier call still
    wait: they would queue the same steps.
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
        todo = [p for p in planned if p.step.name in chosen and p.standing.state != "complete"]
        if not todo:
            return None
        return _queue(pipeline, cluster, planned, [p.step.name for p in todo], chosen)


def _queue(
    pipeline: Pipeline, cluster: Cluster, planned: Sequence[Planned], todo: Sequence[str], asked: Sequence[str]
) -> Attempt:
    attempt = new_attempt(pipeline.run)
    steps = [frozen(p.step, attempt.folder / "files") for p in planned]
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
            "chosen": list(todo),
        },
        "run": str(pipeline.run),
        "dataset": str(pipeline.facts[planned[-1].step.name].dataset),
        "column": "",
        "revision": "",
        "columns": {},
        "executor": "slurm",
        "host": socket.gethostname(),
        "image": None,
        "cluster": cluster.model_dump(mode="json"),
        "tasks": [[] for _ in steps],
        "merge": None,
        "jobs": [""] * len(steps),
        "steps": {},
    }
    attempt.write(data)
    # A gate needs no node for itself, and where it has a partition of its own, none of the usual nodes' features.
    small = {"exclusive": False} | ({"constraint": None} if pipeline.gate.partition else {})
    launch = slurm.Launch(
        name=pipeline.run.name,
        cluster=cluster.model_copy(update=small),
        resources=pipeline.gate,
        image=None,  # the image has no sbatch
        code=snapshot(pipeline.run),
        binds=(),
        pwd=pipeline.run.parents[1],
    )
    try:
        for p in planned:
            name = p.step.name
            if name in todo and p.standing.state == "waits":
                after = [job for parent in p.parents for job in jobs_of(data, index, parent)]
                for queued in slurm.submit(launch, attempt, range(index[name], index[name] + 1), after=after):
                    data["jobs"][index[name]] = queued[0]
                attempt.write(data)
                print(f"{name}: waits as SLURM job {data['jobs'][index[name]]}")
                continue
            jobs: list[str] = []
            if name in todo:
                assert p.standing.work is not None
                jobs = squeue.whole_jobs(p.standing.jobs)
                if p.standing.state == "ready":
                    jobs = start(p.standing.work, cluster, p.standing.jobs)
            if p.standing.work is not None:
                data["steps"][name] = {"jobs": jobs, "work": facts.of_work(p.standing.work)}
            said = f"queued: {', '.join(jobs)}" if jobs else p.standing.why or "complete"
            write_json(attempt.task_file(index[name]), {"state": "done", "step": name, "job": "", "said": said})
            attempt.write(data)
    except UserError as error:
        raise UserError(f"{name}: {error}\nwhat was queued stays; the same command goes on from there") from error
    return attempt


def start(work: Work, cluster: Cluster, busy: Sequence[str] = ()) -> list[str]:
    """Queue a step's work; the ids of all whole jobs that are at it. `busy` are those that were before."""
    before = {attempt.number for attempt in attempts(work.run)}
    submission.submit(work, cluster, replace=work.kind != "train")
    made = [attempt.read()["jobs"] for attempt in attempts(work.run) if attempt.number not in before]
    return squeue.whole_jobs(job for job in [*busy, *(job for jobs in made for job in jobs)] if job)


def jobs_of(data: Mapping[str, Any], index: Mapping[str, int], name: str) -> list[str]:
    """What a dependant of a step has to wait for: its jobs where they are known, and its gate until then."""
    known = data["steps"].get(name, {}).get("jobs", [])
    gate = data["jobs"][index[name]]
    return [*known, *([gate] if gate and name not in data["steps"] else [])]


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
    if any(name not in data["steps"] for name in data["job"]["chosen"]):
        return False
    runs = {step["work"]["run"] for step in data["steps"].values() if step["jobs"]}
    last = [[a for a in attempts(Path(run)) if a.file.exists()][-1] for run in runs]
    return all(follow.last_task_done(a, a.read()) for a in last)


def _is_there(data: Mapping[str, Any], name: str) -> bool:
    known = data["steps"].get(name)
    return known is not None and is_complete(known_work(known["work"]))


def show(planned: Sequence[Planned], as_text: bool) -> None:
    """Print the plan."""
    print(table(planned) if as_text else json.dumps(as_json(planned), indent=1))
