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
from semiocity.launch import facts, lock, slurm, squeue
from semiocity.launch.pipeline_run import jobs_of, known_work, start
from semiocity.launch.pipeline_steps import step_of
from semiocity.launch.pipeline_why import is_complete, look, why
from semiocity.launch.runs import Attempt

OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "SEMIOCITY_RESTART", "PMI")
KEPT = {"SLURM_CONF"}


def run(data: dict[str, Any], index: int, report: Callable[..., None]) -> bool:
    """Queue step `index` of a pipeline. Raises UserError, which names it, when a step before it is not complete."""
    run = Path(data["run"])
    os.chdir(run.parents[1])
    attempt = Attempt(run, data["attempt"])
    cluster = Cluster.model_validate(data["cluster"])
    leave_job(os.environ, slurm.environment(_gate(attempt, cluster)))
    step = step_of(data["job"]["steps"][index])
    report(step=step.name)
    with lock.submission(run):  # whoever queues is done with it: attempt.json is whole
        data = attempt.read()
    check_inputs(data, step.name)
    standing = look(step, cluster)
    assert standing.work is not None
    jobs = squeue.whole_jobs(standing.jobs)
    if standing.state == "ready":
        print(f"{step.name}: {standing.why}", flush=True)
        jobs = start(standing.work, cluster, standing.jobs)
    with lock.submission(run):
        data = attempt.read()
        data["steps"][step.name] = {"jobs": jobs, "work": facts.of_work(standing.work)}
        attempt.write(data)
        report(said=f"queued: {', '.join(jobs)}" if jobs else "complete")
        pass_on(data, step.name)
    return True


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


def pass_on(data: Mapping[str, Any], name: str) -> None:
    """Let the gates behind a step wait for its jobs, now that these are known. Until here they waited for its gate."""
    index = {step["name"]: number for number, step in enumerate(data["job"]["steps"])}
    for other, parents in data["job"]["parents"].items():
        gate = data["jobs"][index[other]]
        if name not in parents or not gate:
            continue
        after = [job for parent in parents for job in jobs_of(data, index, parent)]
        if after:
            _update(gate, f"afterany:{':'.join(dict.fromkeys(after))}")


def leave_job(environment: MutableMapping[str, str], ours: Mapping[str, str]) -> None:
    """Remove what belongs to this job alone, so that a job that is queued from here inherits none of it."""
    for name in list(environment):
        if (name.startswith(OF_A_JOB) or name in ours) and name not in KEPT:
            del environment[name]


def _gate(attempt: Attempt, cluster: Cluster) -> slurm.Launch:
    return slurm.Launch("", cluster, Resources(), None, Path(), (), Path())


def _update(job: str, dependency: str, tries: int = 5) -> None:
    for number in range(tries):
        done = subprocess.run(
            ["scontrol", "update", f"JobId={job}", f"Dependency={dependency}"], capture_output=True, text=True
        )
        if done.returncode == 0 or "is no longer pending" in done.stderr or "already finished" in done.stderr:
            return
        time.sleep(2**number)
    raise UserError(f"scontrol could not make job {job} wait ({dependency}): {done.stderr.strip()}")
