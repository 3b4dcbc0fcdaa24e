"""What a gate does: when the steps before a step have ended, look at what they left, and queue it.

Runs on a compute node, in the login node's environment, with `sbatch` and `scontrol`.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from semiocity.config import Cluster, Resources
from semiocity.errors import UserError
from semiocity.launch import lock, scheduler, slurm, squeue, submission
from semiocity.launch.jobs import Work
from semiocity.launch.pipeline_queue import Started, gate_launch, go_on, index_of, jobs_of, known_work, noted, start
from semiocity.launch.pipeline_steps import step_of
from semiocity.launch.pipeline_why import is_complete, look, why
from semiocity.launch.runs import Attempt

OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "SEMIOCITY_RESTART", "PMI")
KEPT = {"SLURM_CONF"}
ASK_S = 30.0
"""Between two tries to queue the next gate where the site lets us have no more jobs."""


def run(data: dict[str, Any], index: int, report: Callable[..., None]) -> bool:
    """Queue step `index` of a pipeline. Raises UserError, which names it, when a step before it is not complete."""
    run = Path(data["run"])
    os.chdir(run.parents[1])
    attempt = Attempt(run, data["attempt"])
    cluster = Cluster.model_validate(data["cluster"])
    launch = gate_launch(run, cluster, Resources.model_validate(data["job"]["gate"]), Path(data["code"]))
    leave_job(os.environ, slurm.environment(launch))
    step = step_of(data["job"]["steps"][index])
    report(step=step.name)
    with lock.submission(run):  # whoever queues is done with it: attempt.json is whole
        data = attempt.read()
    check_inputs(data, step.name)
    standing = look(step, cluster)
    assert standing.work is not None
    if standing.state == "ready" and not standing.jobs:
        refuse_standstill(data, step.name, standing.work)
    started = Started(squeue.whole_jobs(standing.jobs), False)
    if standing.state == "ready":
        print(f"{step.name}: {standing.why}", flush=True)
        try:
            started = start(standing.work, cluster, standing.jobs, spare=1)  # for the gate that goes on with the rest
        except scheduler.Full as error:
            print(error, flush=True)
            started = Started(started.jobs, True)
    end = time.monotonic() + 30 * launch.resources.timeout_min  # half of this job's time
    while True:
        with lock.submission(run):
            data = attempt.read()
            data["steps"][step.name] = noted(standing.work, started)
            attempt.write(data)
            try:
                if started.left:
                    go_on(attempt, data, launch, step.name)
            except scheduler.Full as error:
                if time.monotonic() > end:
                    raise
                print(error, flush=True)
            else:
                idle = "no room yet" if started.left else "complete"
                report(said=f"queued: {', '.join(started.jobs)}" if started.jobs else idle)
                pass_on(data, step.name)
                return True
        time.sleep(ASK_S)


def check_inputs(data: Mapping[str, Any], name: str) -> None:
    """Raises UserError naming the steps before `name` that are not complete, by their receipts and results."""
    lacking = []
    for parent in data["job"]["parents"][name]:
        known = data["steps"].get(parent)
        if known is None:
            lacking.append(f"{parent} was not started")
        elif not is_complete(work := known_work(known["work"])):
            lacking.append(f"{parent} is not complete ({why(work)})")
    if lacking:
        raise UserError(
            f"{name} was not started: {'; '.join(lacking)}. `semiocity pipeline` again does what is missing"
        )


def refuse_standstill(data: Mapping[str, Any], name: str, work: Work) -> None:
    """Raises UserError when this gate goes on with a step of which nothing was made since the gate before."""
    known = data["steps"].get(name)
    if known and known["jobs"] and work.shards and known["missing"] == len(submission.missing(work)):
        raise UserError(
            f"{name}: job {', '.join(known['jobs'])} made none of the {known['missing']} shards that were missing; see "
            f"`semiocity logs {work.run.name}`, and go on with `semiocity retry {Path(data['run']).name}`"
        )


def pass_on(data: Mapping[str, Any], name: str) -> None:
    """Let the gates behind a step wait for its jobs, now that these are known. Until here they waited for its gate."""
    for other, parents in data["job"]["parents"].items():
        gate = data["jobs"][index_of(data, other)]
        if name not in parents or not gate:
            continue
        after = [job for parent in parents for job in jobs_of(data, parent)]
        if after:
            _update(gate, f"afterany:{':'.join(dict.fromkeys(after))}")


def leave_job(environment: MutableMapping[str, str], ours: Mapping[str, str]) -> None:
    """Remove what belongs to this job alone, so that a job that is queued from here inherits none of it."""
    for name in list(environment):
        if (name.startswith(OF_A_JOB) or name in ours) and name not in KEPT:
            del environment[name]


def _update(job: str, dependency: str, tries: int = 5) -> None:
    for number in range(tries):
        done = subprocess.run(
            ["scontrol", "update", f"JobId={job}", f"Dependency={dependency}"], capture_output=True, text=True
        )
        if done.returncode == 0 or "is no longer pending" in done.stderr or "already finished" in done.stderr:
            return
        time.sleep(2**number)
    raise UserError(f"scontrol could not make job {job} wait ({dependency}): {done.stderr.strip()}")
