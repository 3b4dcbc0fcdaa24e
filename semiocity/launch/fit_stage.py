"""`semiocity fit` for the job of a stage: what memory its model and a batch need, whether that fits, and how long it
takes by what was measured. Neither the dataset nor a GPU is needed, nor are the weights read. Importable on a login
node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiocity.config import Cluster, StageJob
from semiocity.data import manifest
from semiocity.errors import UserError
from semiocity.launch import jobs, sizing
from semiocity.launch.fit import GPU_OVERHEAD, GPU_SHARE, RANK_OVERHEAD, ask
from semiocity.stages.base import Stage

PICTURE = 2048 * 1024 * 3
"""Bytes of a decoded picture, where nobody knows."""


def fit(job_file: Path, sets: Sequence[str], cluster: Cluster, gpu_gb: float | None = None) -> dict[str, Any]:
    """Everything that `semiocity fit` says of a stage, as JSON. Raises UserError."""
    job, stage = jobs.load_stage(job_file, sets)
    asked, batch = job.resources, stage.args.batch
    batches = [batch, batch // 2] if batch > 1 else [batch]
    binds = [Path(path).resolve() for path in stage.paths()]
    args = stage.args.model_dump(mode="json") | ({"model": str(binds[0])} if binds else {})
    question = {"stage": stage.name, "args": args, "batches": batches}
    found: list[dict[str, Any]] = [{"parameters": 0, "weights": 0, "pass": 0, "kept": 0}] * len(batches)
    if binds:  # the others have no model, and need no torch
        found = ask("semiocity.stages.footprint", question, job.image, binds, cluster)
    device = stage.args.device
    room = (gpu_gb or cluster.gpu_gb) if device == "cuda" else asked.mem_gb
    needed = [_needed(facts, device, asked.ranks_per_node) for facts in found]
    pictures = 2 * batch * PICTURE  # one batch is read while another is made
    host = float(asked.ranks_per_node * (found[0]["weights"] + pictures + RANK_OVERHEAD))
    return {
        "stage": stage.name,
        "device": device,
        "samples": batch,
        "parameters": found[0]["parameters"],
        "bytes": {name: found[0][name] for name in ("weights", "pass", "kept")},
        "needed_gb": round(needed[0] / 1e9, 2),
        "room_gb": room,
        "fits": None if room is None else needed[0] <= room * 1e9 * (GPU_SHARE if device == "cuda" else 1),
        "host_gb": round(host / 1e9, 2),
        "host_room_gb": asked.mem_gb,
        "host_fits": host <= asked.mem_gb * 1e9 if device == "cuda" and asked.mem_gb is not None else None,
        "suggestions": [
            {"set": f"args.batch={half}", "needed_gb": round(less / 1e9, 2)}
            for half, less in zip(batches[1:], needed[1:])
            if less < needed[0] * 0.98
        ],
        "time": _time(job_file, sets, job, stage),
    }


def _needed(found: Mapping[str, Any], device: str, ranks: int) -> float:
    """Bytes of a GPU, or of a node where there is none."""
    one = float(found["weights"] + found["pass"] + found["kept"])
    return one + GPU_OVERHEAD if device == "cuda" else ranks * (one + RANK_OVERHEAD)


def _time(job_file: Path, sets: Sequence[str], job: StageJob, stage: Stage) -> dict[str, Any]:
    """Hours of all shards by what some took; without a dataset, or before that, unknown."""
    try:
        shards = manifest.read_manifest(job.dataset.resolve())["columns"]["base"]["shards"]
        work = jobs.stage(job_file, sets)
    except UserError:
        return {"basis": "unknown"}
    shard_s = sizing.measured_s(work)
    if shard_s is None:
        return {"basis": "unknown", "shards": shards}
    task_hours = shards * shard_s / 3600
    gpus = job.resources.nodes * job.resources.gpus_per_node
    return {
        "basis": "measured",
        "shards": shards,
        "shard_s": round(shard_s, 3),
        "task_hours": round(task_hours, 3),
        "gpu_hours": round(task_hours * gpus, 3),
    }


def render(facts: Mapping[str, Any]) -> str:
    """The facts as text for a person."""
    gpu = facts["device"] == "cuda"
    where = "a GPU" if gpu else "a node"
    lines = [f"stage {facts['stage']}: {facts['parameters']:,} parameters; batches of {facts['samples']}"]
    labels = {"weights": "weights", "pass": "a batch at its highest", "kept": "masks that wait (an estimate)"}
    for name, label in labels.items():
        if value := facts["bytes"][name]:
            lines.append(f"  {label:<34} {value / 1e9:9.3f} GB")
    rest = facts["needed_gb"] - sum(facts["bytes"].values()) / 1e9
    lines.append(f"  {'CUDA, cuDNN (an allowance)' if gpu else 'Python and libraries':<34} {rest:9.3f} GB")
    verdict = {True: "fits", False: "DOES NOT FIT", None: f"memory of {where} unknown: give --gpu-gb or gpu_gb"}
    if not gpu:
        verdict[None] = "resources.mem_gb does not say how much there is"
    room = f" of {facts['room_gb']:g} GB" if facts["room_gb"] else ""
    lines.append(f"{where} needs {facts['needed_gb']:.2f} GB{room}: {verdict[facts['fits']]}")
    if gpu:
        host = f" of resources.mem_gb = {facts['host_room_gb']:g}" if facts["host_room_gb"] else ""
        short = ", WHICH IS TOO LITTLE" if facts["host_fits"] is False else ""
        lines.append(f"main memory of a node: {facts['host_gb']:.1f} GB{host}{short}")
    time = facts["time"]
    if time["basis"] == "measured":
        gpus = f", {time['gpu_hours']:g} GPU-hours" if gpu else ""
        lines.append(f"{time['shard_s']:g} s a shard (measured): {time['task_hours']:g} hours of tasks{gpus}")
    else:
        lines.append("time: unknown until the job has made some shards")
    if facts["suggestions"] and facts["fits"] is not True:
        lines += ["to need less:", *(f"  --set {i['set']:<26} {i['needed_gb']:8.2f} GB" for i in facts["suggestions"])]
    return "\n".join(lines)
