"""`semiocity doctor --node`: a small job through the ordinary launching path, its signals, and what it found."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.config import Cluster, Resources
from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import doctor_host, doctor_probe, doctor_task, squeue, submission
from semiocity.launch.findings import Finding, fault, ok, warning
from semiocity.launch.jobs import Work, run_folder
from semiocity.launch.runs import attempts

HOST = "host.txt"
POLL_S = 0.25
ASK_S = 3.0
COME_BACK_S = 300.0
"""A requeued job waits two minutes at most sites before it may start again (cred_expire)."""


def work_for(asked: Resources, image: Path | None, models: list[str], requeue: bool) -> Work:
    """The doctor's job: one rank on one node, with the GPUs, memory and partition that are asked for."""
    small = {"nodes": 1, "ranks_per_node": 1, "timeout_min": 10, "signal_delay_s": 60, "shards_per_task": 1}
    run = run_folder("doctor" + (f"-gpu{asked.gpus_per_node}" if asked.gpus_per_node else ""))
    return Work(
        kind="doctor",
        run=run,
        dataset=run.parent,
        job={"gpus": asked.gpus_per_node, "models": models, "requeue": requeue},
        resources=asked.model_copy(update=small),
        image=image,
        binds=tuple(Path(model).resolve() for model in models),
    )


def show(work: Work, cluster: Cluster, paths: list[str]) -> None:
    """Print the sbatch file that `examine` would submit."""
    submission.submit(work, _looking(work, cluster, paths), dry_run=True)


def _looking(work: Work, cluster: Cluster, paths: list[str]) -> Cluster:
    """The site with one more line of the batch script: what the node is like outside the container."""
    look = doctor_probe.command(cluster.container.apptainer, paths, work.run / HOST)
    return cluster.model_copy(update={"setup": [*cluster.setup, look]})


def examine(work: Work, cluster: Cluster, paths: list[str], wait_min: float = 10) -> list[Finding]:
    """Submit the doctor's job, follow it, send it the signals, and judge what came back.

    `paths` are folders to look at on the node. Gives up after `wait_min` minutes in the queue.
    """
    host = work.run / HOST
    work.run.mkdir(parents=True, exist_ok=True)
    for old in (host, *work.run.glob("node.*.json")):
        old.unlink(missing_ok=True)
    submission.submit(work, _looking(work, cluster, paths), replace=True)
    if cluster.executor == "local":
        return judge(
            work, cluster, doctor_probe.probe(cluster.container.apptainer, paths), {0: _read(work, 0) or {}}, {}
        )
    job = str(attempts(work.run)[-1].read()["jobs"][0])
    ended = False
    try:
        found = _follow(work, cluster, job, host, wait_min)
        ended = all(finding.check != "node job" for finding in found)
        return found
    finally:
        if not ended:  # it never came, or Ctrl-C: nothing of ours stays in the queue
            subprocess.run(["scancel", "--quiet", job], capture_output=True)


def _follow(work: Work, cluster: Cluster, job: str, host: Path, wait_min: float) -> list[Finding]:
    """Send each life of the job its signal when it waits for it, and judge what they left."""
    times: dict[str, float] = {}
    trouble: Finding | None = None
    for restart, name in [(0, "SIGUSR2"), (1 if cluster.requeue else 0, "SIGTERM")]:
        limit_s = wait_min * 60 if restart == 0 else COME_BACK_S
        if trouble := _try_signal(work, job, restart, name, limit_s, times):
            break
    lives = {restart: found for restart in (0, 1) if (found := _read(work, restart))}
    facts = doctor_probe.parse(host.read_text(errors="replace")) if host.exists() else {}
    return [*judge(work, cluster, facts, lives, times), *([trouble] if trouble else [])]


def _try_signal(
    work: Work, job: str, restart: int, name: str, limit_s: float, times: dict[str, float]
) -> Finding | None:
    """Wait for a life of the job to be ready, send it a signal, and wait until it noted that. `times` gets when."""

    def told() -> dict[str, Any]:
        return _read(work, restart) or {}

    if trouble := _wait(work, job, lambda: told().get("waiting") == name, limit_s, restart):
        return trouble
    times[f"seen {name}"] = time.time()
    times[f"ready {name}"] = told()["ready"]
    times[f"sent {name}"] = time.time()
    subprocess.run(["scancel", f"--signal={name.removeprefix('SIG')}", job], capture_output=True)
    # A signal that never arrives is a finding of its own, from what the job noted.
    _wait(work, job, lambda: name in told().get("signals", {}), doctor_task.WAIT_S, restart)
    return None


def _wait(work: Work, job: str, condition: Callable[[], bool], limit_s: float, restart: int) -> Finding | None:
    """Poll until `condition`; a finding that says why it never came."""
    end = time.monotonic() + limit_s
    asked, gone = 0.0, 0
    while not condition():
        if time.monotonic() > end:
            what = "did not start" if restart == 0 else "did not come back after it asked to be requeued"
            return _absent(work, job, f"{what} within {limit_s / 60:.0f} min")
        if time.monotonic() - asked > ASK_S:
            asked = time.monotonic()
            with suppress(UserError):
                gone = 0 if squeue.states([job]) else gone + 1
            # Between its two lives a job may be out of sight for a moment.
            if gone > 3:
                return None if condition() else _absent(work, job, "ended before it said anything")
        time.sleep(POLL_S)
    return None


def _absent(work: Work, job: str, what: str) -> Finding:
    reason = subprocess.run(["squeue", "-h", "-j", job, "-o", "%r"], capture_output=True, text=True).stdout.strip()
    said = next(filter(None, map(_last, sorted(attempts(work.run)[-1].folder.rglob("*.out")))), "")
    todo = f"its log says: {said}" if said else f"squeue gives as reason: {reason}" if reason else "see squeue"
    return fault("node job", f"job {job} {what}", todo, "node")


def _last(log: Path) -> str:
    """The last line that is neither srun's nor the batch script's own."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-50:]]
    return next(
        (
            line
            for line in reversed(lines)
            if line and not line.startswith(("srun:", "slurmstepd", "semiocity: begins", "semiocity: ended"))
        ),
        "",
    )


def _read(work: Work, restart: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = read_json(doctor_task.file_of(work.run, restart))
    except (OSError, UserError):
        return None
    return found


def judge(
    work: Work,
    cluster: Cluster,
    host: dict[str, Any],
    lives: dict[int, dict[str, Any]],
    times: dict[str, float],
) -> list[Finding]:
    """Findings from the node's facts: `host` from outside the container, `lives` from inside, by restart."""
    asked, image = work.resources, work.image or cluster.container.image
    place = host.get("host") or "node"
    found: list[Finding] = []
    if host:
        if image is not None and cluster.container.runtime == "pyxis":
            found += doctor_host.pyxis(host, place)
        else:
            found.append(doctor_host.apptainer(host, cluster.container.apptainer, image is not None, place))
            found.append(doctor_host.fuse(host, image is not None, place))
        found += [
            *doctor_host.binds(host, cluster.container.binds if image else [], place),
            *doctor_host.room(host, place),
            *doctor_host.network(host, cluster, asked, place),
        ]
    inside = lives.get(0)
    if not inside:
        return found
    if inside.get("image") is not None and image is not None:
        found.append(doctor_host.image_content(inside["image"], image.name, place))
    torch = inside.get("torch", {})
    found += [
        *doctor_host.same_versions(doctor_probe.versions(), inside["versions"], place),
        *doctor_host.folder(inside["folder"], place),
        doctor_host.shared_memory({"shm_kb": inside["shm_kb"]}, max(1, asked.gpus_per_node), place),
        doctor_host.offline(inside["environment"], place),
        *doctor_host.gpus(host or {"gpu": []}, asked.gpus_per_node, torch.get("cuda"), place),
    ]
    if asked.gpus_per_node:
        found.append(_torch(torch, place))
        found.append(doctor_host.transport(inside.get("nccl", []), host or {"infiniband": []}, place))
    for path in inside["unseen"]:
        found.append(fault("weights", f"{path}: not seen in the job", "add its folder to container.binds", place))
    if cluster.executor == "slurm":
        found += _signals(cluster, lives, times, place)
    return found


def _torch(facts: dict[str, Any], place: str) -> Finding:
    if facts.get("works"):
        return ok("torch", f"computes on {facts['gpus']} GPUs, CUDA {facts['cuda']}", place)
    why = facts.get("error") or f"{facts.get('gpus', 0)} GPUs visible, CUDA {facts.get('cuda')}"
    return fault("torch", f"cannot compute on the GPU: {why}", "compare the driver's CUDA with the image's", place)


def _signals(cluster: Cluster, lives: dict[int, dict[str, Any]], times: dict[str, float], place: str) -> list[Finding]:
    arrived = {name: at for life in lives.values() for name, at in life.get("signals", {}).items()}
    sent = {name: times[f"sent {name}"] for name in ("SIGUSR2", "SIGTERM") if f"sent {name}" in times}
    found = doctor_host.signals({n: max(0.0, arrived[n] - sent[n]) for n in sent if n in arrived}, list(sent), place)
    if "SIGUSR2" in arrived and "SIGUSR2" in sent:
        # The node said "ready" before we saw it, and the signal arrived after we sent it: its clock lies between.
        low, high = times["ready SIGUSR2"] - times["seen SIGUSR2"], arrived["SIGUSR2"] - sent["SIGUSR2"]
        found.append(doctor_host.clock(low, high, place))
    if not cluster.requeue:
        found.append(warning("requeue", "not tried: requeue = false", "stopped jobs wait for `semiocity retry`", place))
    elif 1 in lives:
        found.append(ok("requeue", "the job saved, asked to come back, and came back", place))
    return found
