"""From a resolved job to jobs in the queue: pure builders of sbatch files, and one function that submits them.

The local executor runs the same functions on this machine; it is the default without `jobs/cluster.toml`.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.config import Cluster, Resources
from semiocity.files import write_atomic
from semiocity.launch import container, ends, limits, sbatch, scheduler, sharing, site, squeue
from semiocity.launch.runs import Attempt

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True)
class Launch:
    """Everything a submission needs to know beside the work itself."""

    name: str
    cluster: Cluster
    resources: Resources
    image: Path | None
    code: Path
    """Folder to put on PYTHONPATH: the run's code snapshot."""
    binds: tuple[Path, ...]
    """Folders that tasks read and write: run, dataset, weights."""
    pwd: Path
    """The project's folder, which relative paths in job files start from. Parent of the run folder."""
    exclude: tuple[str, ...] = ()
    """Nodes to keep away from."""
    restart: int = 0
    """With the local executor: how often this task came back. SLURM counts by itself."""


def retries(cluster: Cluster, asked: Resources) -> dict[str, int]:
    """Budget → how often a job may come back by it: the job's own where it says so, else the cluster's."""
    own = asked.retries.model_dump(exclude_unset=True) if asked.retries else {}
    return {**cluster.retries.model_dump(), **own}


def environment(launch: Launch) -> dict[str, str]:
    """Variables of every task. No secrets: they end up in the sbatch file."""
    cpu_only = launch.resources.gpus_per_node == 0
    interface = launch.cluster.network_interface
    return {
        "PYTHONPATH": str(launch.code),
        # `python -m` would put the current folder, where a working copy of this package may lie, before the snapshot.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(launch.resources.cpus_per_rank),
        **site.OFFLINE,
        **({"SEMIOCITY_RESTART": str(launch.restart)} if launch.restart else {}),
        # On cores that others use too, threads that wait by spinning cost several times the work itself.
        **({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"} if cpu_only else {}),
        **({"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}),
        **launch.cluster.container.env,
    }


def python(launch: Launch) -> str:
    """The shell command that stands for `python` in the job: this interpreter, or the image's."""
    variables, settings = environment(launch), launch.cluster.container
    if launch.image is None or settings.runtime == "pyxis":
        inside = {} if launch.image is None else container.ENVIRONMENT
        program = sys.executable if launch.image is None else settings.python
        assignments = [f"{key}={shlex.quote(value)}" for key, value in {**inside, **variables}.items()]
        return " ".join(["env", *assignments, shlex.quote(program)])
    return container.python_command(
        launch.image,
        binds=binds(launch),
        env={key: value for key, value in variables.items() if key != "PYTHONPATH"},
        nv=launch.resources.gpus_per_node > 0,
        pythonpath=launch.code,
        pwd=launch.pwd,
        apptainer=settings.apptainer,
        python=settings.python,
    )


def binds(launch: Launch) -> list[str]:
    """What the container sees of the file system, at the same absolute paths; the code read-only."""
    code = f"{launch.code}:{launch.code}:ro"
    return [*(str(path) for path in launch.binds), code, *launch.cluster.container.binds]


def slurm_parameters(launch: Launch, attempt: Attempt, after: Sequence[str] = ()) -> dict[str, Any]:
    """Parameters of `sbatch.script`. `after` are ids of whole jobs to wait for, however they end."""
    cluster, asked = launch.cluster, launch.resources
    srun = [f"--cpus-per-task={asked.cpus_per_rank}", *cluster.srun]  # srun ignores SLURM_CPUS_PER_TASK since 22.05
    if asked.nodes * asked.ranks_per_node > 1:
        srun.append("--kill-on-bad-exit=1")
    if asked.gpus_per_node:
        srun.append("--gpu-bind=none")  # isolated GPUs break peer-to-peer copies
    if launch.image is not None and cluster.container.runtime == "pyxis":
        srun += container.pyxis_arguments(str(launch.image), binds=binds(launch), pwd=launch.pwd)
    options: dict[str, Any] = {
        "job_name": f"semiocity-{launch.name}",
        "time": asked.timeout_min,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.ranks_per_node,
        "cpus_per_task": asked.cpus_per_rank,
        **site.request(cluster, asked),
        "partition": asked.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "dependency": "afterany:" + ":".join(after) if after else None,
        "signal_delay_s": asked.signal_delay_s,
        "array_parallelism": asked.array_parallelism,
        "setup": [*(sharing.SHELL if cluster.shared_group else []), *cluster.setup, *ends.setup()],
        "teardown": ends.teardown(attempt, launch.code, retries(cluster, asked), cluster.requeue),
        "exclude": ",".join(launch.exclude) or None,
        "srun_args": srun,
        "additional_parameters": site.extra(cluster),
    }
    return {key: value for key, value in options.items() if value is not None}


def sbatch_file(launch: Launch, attempt: Attempt, tasks: int, first: int = 0, after: Sequence[str] = ()) -> str:
    """The sbatch file of `tasks` tasks of an attempt from index `first` on. Needs no SLURM and writes nothing."""
    index = f'"$(({first} + SLURM_ARRAY_TASK_ID))"' if tasks > 1 else str(first)
    command = f"{python(launch)} -u -m semiocity.launch.entry {shlex.quote(str(attempt.run))} {attempt.number} {index}"
    parameters = slurm_parameters(launch, attempt, after)
    budgets = retries(launch.cluster, launch.resources)
    parameters["setup"] += ends.guard(attempt, launch.code, index, launch.resources.nodes)
    parameters["setup"] += limits.watch(attempt, launch.code, index, budgets, launch.cluster.requeue)
    parameters["teardown"].insert(parameters["teardown"].index("trap '' TERM") + 1, limits.STOP)
    return sbatch.script(parameters, command, attempt.logs, tasks)


def submit(launch: Launch, attempt: Attempt, indices: range, after: Sequence[str] = ()) -> Iterator[list[str]]:
    """Queue tasks `indices` of an attempt with SLURM; yields the job ids of each array that was queued, in order.

    Arrays longer than the cluster's MaxArraySize are split. At the site's limit of submitted jobs as many are queued as
    it takes, and then `scheduler.Full` is raised. UserError with sbatch's own words otherwise; what was yielded before
    is queued.
    """
    after = squeue.whole_jobs(after)
    longest = 1 if len(indices) == 1 else (launch.cluster.max_array or scheduler.max_array())
    first, end = indices.start, indices.stop
    most = longest
    while first < end:
        count = min(most, end - first)
        script = sbatch_file(launch, attempt, count, first, after)
        file = attempt.sbatch_file(first)
        write_atomic(file, (script + "\n").encode())
        try:
            job = scheduler.call(["sbatch", "--parsable", str(file)], unsure=partial(_queued, file))
        except scheduler.Full:
            if count == 1:
                file.unlink()
                raise
            most = count // 2
            continue
        number = job.strip().partition(";")[0]  # JOB;CLUSTER where there are several clusters
        yield [f"{number}_{index}" for index in range(count)] if count > 1 else [number]
        first += count


def _queued(file: Path) -> str | None:
    """The job that this sbatch file became, when it is in the queue: a request that timed out may have arrived."""
    found = [job.whole for job in squeue.jobs([]) if job.command == str(file)]
    return found[0] if found else None


def start_local(launch: Launch, attempt: Attempt, index: int) -> submitit.Job[str]:
    """Start one task (all its ranks) on this machine and return at once."""
    import submitit

    from semiocity.launch import task

    asked = launch.resources
    made = submitit.LocalExecutor(attempt.logs, python=python(launch))
    made.update_parameters(
        timeout_min=asked.timeout_min,
        tasks_per_node=asked.ranks_per_node,
        gpus_per_node=asked.gpus_per_node,
        signal_delay_s=asked.signal_delay_s,
        stderr_to_stdout=True,
    )
    # Tasks take Ctrl-C as "save and stop"; submitit's controller between us and them would kill them after a second.
    # What is ignored here when a child starts stays ignored in it until it installs a handler of its own.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return made.submit(task.main, str(attempt.run), attempt.number, index)
    finally:
        signal.signal(signal.SIGINT, previous)
