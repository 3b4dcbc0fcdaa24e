"""`semiocity fit`: what memory a training needs on each GPU or CPU rank, whether it fits, and how long it takes.

Tensors of a pass are counted on torch's meta device (semiocity.train.footprint) in a process of its own: here, or in
the image where this Python has no torch. What DeepSpeed keeps beside them follows from sizes; tests hold both against
the allocator. Importable on a login node.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.config import Cluster
from semiocity.data import manifest
from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import container
from semiocity.launch.jobs import Work, image_of
from semiocity.train.gpu_peaks import peak_tflops
from semiocity.train.optimizer_options import KINDS, OptimizerKind

if TYPE_CHECKING:
    from semiocity.train.options import TrainJob

BUCKET = 50_000_000
"""Elements of DeepSpeed's buffer for gradients: semiocity.train.zero.BUCKET_ELEMENTS."""
LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered at most (DeepSpeed's stage3_max_live_parameters)."""
GPU_OVERHEAD = 2.0e9
"""Bytes that CUDA's context, NCCL's buffers and cuDNN's workspaces take, roughly: an allowance, not measured."""
GPU_SHARE = 0.95
"""Share of a GPU's memory that tensors can fill before fragmentation ends the run: an allowance, not measured."""
RANK_OVERHEAD = 0.7e9
"""Bytes of a process that has imported torch and DeepSpeed."""
RECOMPUTE: dict[str, tuple[Any, Any]] = {"model.recompute": (0, "all"), "model.checkpoint": (False, True)}
"""Setting -> its values without and with recomputed activations."""
MFU = 0.35
"""Share of the peak that is assumed before anything was measured."""


def states(phase: Mapping[str, Any], ranks: int, accumulation: int) -> dict[str, float]:
    """Bytes that a phase keeps on a rank from step to step, and those of the moment when its optimizer moves (`step`).

    `phase` is one of `footprint`'s; the others are what DeepSpeed 0.19 allocates with `zero.Engine`'s settings.
    """
    n, width = phase["parameters"], 2 if phase["precision"] == "bf16" else 4
    stage, share = phase["stage"], n / (ranks if phase["stage"] else 1)
    bucket = min(BUCKET, n) * width
    moments = KINDS[phase.get("optimizer", "adamw")].state_bytes * share
    held = {"weights": n * width, "moments": moments, "average": 4.0 * share if phase["ema"] else 0.0}
    match stage, phase["precision"]:
        case 0, _:
            pass  # gradients are part of the pass
        case 1, "bf16":
            # Summed in fp32 over the whole model; those of the pass stay until they are added.
            held |= {"master": 4 * share, "gradients": (4 + width) * n}
        case ((1 | 2), _):
            held |= {"master": 4 * share, "gradients": bucket + (4 * share if accumulation > 1 else 0)}
        case _:
            held["weights"] = n * width / ranks + phase["small"] * width
            gathered = min(n - phase["small"], LIVE_PARAMETERS) * width
            held |= {"master": 4 * share, "gradients": bucket + 4 * share, "gathered": gathered}
    held["other"] = phase["untrained"]
    if phase.get("optimizer") == "adamw_bf16":  # the weights are the master weights
        held["master"] = 0
    if phase.get("offload", "none") != "none":
        # What is left of the gradients is the bucket, and one parameter's on its way to the host.
        held |= {"master": 0, "moments": 0, "average": 0, "gradients": 2 * bucket + phase["largest"] * width}
        if phase["offload"] == "parameters":
            held["weights"] = phase["small"] * width
    return held


def offloaded(phase: Mapping[str, Any], ranks: int) -> float:
    """Bytes that a phase keeps in a rank's part of the host's memory: fp32 master weights, moments, gradients and
    average, a copy of the new weights on their way back, and with "parameters" the weights themselves."""
    if phase.get("offload", "none") == "none":
        return 0.0
    width = 2 if phase["precision"] == "bf16" else 4
    each = 4 + 8 + 4 + width + (4 if phase["ema"] else 0) + (width if phase["offload"] == "parameters" else 0)
    return float(each * phase["parameters"] / ranks)


def pass_bytes(phase: Mapping[str, Any], ranks: int, accumulation: int) -> float:
    """Most bytes of a pass beside the states: activations, and what is kept of the gradients that are done.

    Stage 0, and stage 1 in bf16, keep them whole to the end; else a gradient is let go of once it is in the bucket, and
    the rank's share is summed up.
    """
    width = 2 if phase["precision"] == "bf16" else 4
    stage = phase["stage"]
    if stage == 0 or (stage == 1 and width == 2):
        each = float(width)
    elif phase.get("offload", "none") != "none" or _sums_are_kept(phase, accumulation):
        each = 0.0
    else:
        each = (2 if phase.get("optimizer") == "adamw_bf16" else 4) / ranks
    return float(max(held + each * done for done, held in phase["pass"]))


def _sums_are_kept(phase: Mapping[str, Any], accumulation: int) -> bool:
    """Whether the sums of gradients are among the states, and the very ones that the optimizer reads."""
    return phase["stage"] == 3 or (phase["stage"] == 2 and phase["precision"] == "bf16" and accumulation > 1)


def rank_bytes(found: Mapping[str, Any], ranks: int, accumulation: int, device: str) -> dict[str, float]:
    """Peak bytes of a rank, by what takes them. Phases keep their states together; their passes come one by one."""
    parts: dict[str, float] = {"frozen": found["frozen"], "input": found["batch"]}
    passing = moving = 0.0
    for phase in found["phases"]:
        for name, value in states(phase, ranks, accumulation).items():
            parts[name] = parts.get(name, 0) + value
        width = 2 if phase.get("optimizer") == "adamw_bf16" else 4
        share = width * phase["parameters"] / (ranks if phase["stage"] else 1)
        if phase.get("offload", "none") != "none":
            share = 0.0  # the host's
        # With stage 3 the gradients' buffer is there twice during the pass, as measured.
        again = min(BUCKET, phase["parameters"]) * (2 if phase["precision"] == "bf16" else 4)
        passing = max(passing, pass_bytes(phase, ranks, accumulation) + (again if phase["stage"] == 3 else 0))
        # Stage 0: gradients, and their copies while they are summed over the ranks (as measured). Else the gradient of
        # the share, unless its sums are among the states, and on CPUs what AdamW computes in between (fused on GPUs).
        times = 4 if phase["stage"] == 0 and ranks > 1 else 1 if device == "cuda" else 3
        moving = max(moving, share * (times - _sums_are_kept(phase, accumulation)))
    parts["pass"] = max(passing, moving)
    total = sum(parts.values())
    if (more := found.get("start", 0) - total) > 0:
        parts["start"] = more
    return {**parts, "total": max(total, total + more)}


def measure(work: Work, cluster: Cluster, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`footprint` of several variants of a training, from a process that has torch."""
    recipe = manifest.read_manifest(work.dataset)["recipe"]
    classes = recipe.get("classes") or ()
    facts = {
        "name": work.dataset.name,
        "digest": "",
        "classes": [entry["name"] for entry in classes],
        "palette": [list(entry.get("colour") or entry.get("color") or (0, 0, 0)) for entry in classes],
        "ignore_id": recipe.get("ignore_id"),
    }
    question = {"job": work.job, "facts": facts, "variants": variants}
    answer: dict[str, Any] = ask("semiocity.train.footprint", question, work.image, work.binds, cluster)
    return answer


def ask(module: str, question: Any, image: Path | None, binds: Sequence[Path], cluster: Cluster) -> Any:
    """What a module answers to a question, both JSON, in a process that has torch: here, or in the image, which sees
    the folders `binds`. Raises UserError with its last line when it fails."""
    argv = [*_python(image, binds, cluster), "-m", module]
    done = subprocess.run(argv, input=json.dumps(question), capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"fit: {last.removeprefix('semiocity.errors.UserError: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _python(job_image: Path | None, binds: Sequence[Path], cluster: Cluster) -> list[str]:
    """A Python with torch: this one, or the image's with the code as it is here."""
    if importlib.util.find_spec("torch"):
        return [sys.executable]
    image = image_of(job_image, cluster)
    if image is None:
        raise UserError("fit needs torch: run it where `make env` was run, or name an image in jobs/cluster.toml")
    if cluster.container.runtime == "pyxis":
        raise UserError("fit needs torch, and Enroot's image cannot be started here: run it where `make env` was run")
    code = Path(__file__).resolve().parents[2]
    argv = container.exec_argv(
        image,
        binds=[container.bind(path) for path in (code, *binds)],
        env={},
        nv=False,
        pythonpath=code,
        pwd=code,
        apptainer=cluster.container.apptainer,
    )
    return [*argv, "python3"]


def fit(work: Work, cluster: Cluster, gpu_gb: float | None = None, gpu: str | None = None) -> dict[str, Any]:
    """Everything that `semiocity fit` says of a training, as JSON. Raises UserError for work of another kind."""
    from semiocity.train.options import TrainJob

    if work.kind != "train":
        raise UserError(f"fit knows trainings and stages; this is a {work.kind} job")
    job = TrainJob.model_validate(work.job)
    asked = job.resources
    ranks = asked.nodes * asked.ranks_per_node
    samples = job.global_batch // (ranks * job.accumulation)
    device = "cuda" if asked.gpus_per_node else "cpu"
    variants: dict[str, dict[str, Any]] = {"job": {"samples": samples, "model": {}}}
    if samples > 1:
        variants["half"] = {"samples": samples // 2, "model": {}}
    for key, (_, recomputed) in RECOMPUTE.items():
        name = key.removeprefix("model.")
        if job.model.get(name, recomputed) != recomputed:
            variants[key] = {"samples": samples, "model": {name: recomputed}}
    found = measure(work, cluster, variants)
    parts = rank_bytes(found["job"], ranks, job.accumulation, device)
    room = room_gb(job, cluster, gpu_gb, device)
    needed = parts["total"] + (GPU_OVERHEAD if device == "cuda" else RANK_OVERHEAD)
    facts: dict[str, Any] = {
        "device": device,
        "ranks": ranks,
        "samples": samples,
        "parameters": sum(phase["parameters"] for phase in found["job"]["phases"]),
        "bytes": {name: round(value) for name, value in parts.items()},
        "needed_gb": round(needed / 1e9, 2),
        "room_gb": room,
        "fits": None if room is None else needed <= room * 1e9 * (GPU_SHARE if device == "cuda" else 1),
        "host_gb": round(host_bytes(found["job"], asked.ranks_per_node, ranks) / 1e9, 2),
        "host_room_gb": asked.mem_gb,
        "host_fits": None,
        "checkpoint_gb": round(checkpoint_bytes(found["job"]) / 1e9, 2),
        "suggestions": [],
    }
    if device == "cuda" and asked.mem_gb is not None:
        facts["host_fits"] = facts["host_gb"] <= asked.mem_gb
    facts["time"] = _time(job, work.run, found["job"], ranks, gpu or cluster.gpu_type, device)
    facts["suggestions"] = _suggestions(job, found, ranks, device)
    return facts


def room_gb(job: TrainJob, cluster: Cluster, gpu_gb: float | None, device: str) -> float | None:
    """Memory of a rank in GB; None when nobody said."""
    if device == "cuda":
        return gpu_gb or cluster.gpu_gb
    return job.resources.mem_gb / job.resources.ranks_per_node if job.resources.mem_gb else None


def host_bytes(found: Mapping[str, Any], ranks_per_node: int, ranks: int) -> float:
    """Main memory of a node: when a GPU training starts, every rank makes the model in fp32 before it moves; later it
    keeps what is offloaded."""
    weights = sum(4 * phase["parameters"] for phase in found["phases"])
    kept = sum(offloaded(phase, ranks) for phase in found["phases"])
    return float(ranks_per_node * (max(weights + found["frozen"], kept) + RANK_OVERHEAD))


def checkpoint_bytes(found: Mapping[str, Any]) -> float:
    """A checkpoint on disk: master weights (bf16 with `adamw_bf16`), the optimizer's state, and the average."""
    total = 0.0
    for phase in found["phases"]:
        kind = phase.get("optimizer", "adamw")
        master = 2 if kind == "adamw_bf16" else 4
        total += phase["parameters"] * (master + KINDS[kind].state_bytes + 4 * phase["ema"])
    return total


def _time(
    job: TrainJob, run: Path, found: Mapping[str, Any], ranks: int, gpu: str | None, device: str
) -> dict[str, Any]:
    """Hours for all steps; measured where the run has progressed, else from FLOPs and an assumed share of the peak."""
    flops = sum(phase["flops"] / phase["every"] for phase in found["phases"])
    facts: dict[str, Any] = {"tflop_per_sample": round(flops / 1e12, 4), "step": 0, "basis": "unknown"}
    try:
        progress = read_json(run / "progress.json")
    except FileNotFoundError:
        progress = {}
    speed = progress.get("samples_per_s")
    if speed:
        facts |= {"basis": "measured", "step": progress["step"]}
    elif device == "cuda" and (peak := peak_tflops(gpu or "")):
        speed = ranks * peak * 1e12 * MFU / flops
        facts |= {"basis": f"assumed: {MFU:.0%} of the {peak:g} TFLOP/s of {gpu}"}
    if speed:
        hours = job.steps * job.global_batch / speed / 3600
        left = (job.steps - facts["step"]) * job.global_batch / speed / 3600
        gpus = job.resources.nodes * job.resources.gpus_per_node
        facts |= {"samples_per_s": round(speed, 2), "hours": round(hours, 2), "hours_left": round(left, 2)}
        facts |= {"gpu_hours": round(hours * gpus, 1), "gpu_hours_left": round(left * gpus, 1)}
    return facts


def _suggestions(job: TrainJob, found: Mapping[str, Any], ranks: int, device: str) -> list[dict[str, Any]]:
    """Settings that need less memory, the cheapest in speed first, each with what a rank would need then."""
    overhead = GPU_OVERHEAD if device == "cuda" else RANK_OVERHEAD
    before = rank_bytes(found["job"], ranks, job.accumulation, device)["total"]
    tried: list[tuple[str, dict[str, Any], int, str]] = []
    kind = KINDS[job.optimizer.kind]
    for stage in (s for s in kind.stages if s > job.zero.stage):
        with_stage = _with(found["job"], stage=stage)
        price = "same speed, nearly" if stage < 3 else "weights are gathered for each layer"
        if ranks > 1 and not (stage < 3 and job.zero.stage == 0 and ranks == 1):
            tried.append((f"zero.stage={stage}", with_stage, job.accumulation, price))
    if job.zero.precision == "fp32" and job.zero.stage and device == "cuda":
        tried.append(('zero.precision="bf16"', _as_bf16(found["job"]), job.accumulation, "faster on GPUs"))
    if job.optimizer.kind == "adamw":
        less: dict[OptimizerKind, str] = {
            "adamw_8bit": "moments rounded to 8 bits",
            "adamw_bf16": "weights and moments rounded to bf16",
        }
        for name, price in less.items():
            if job.zero.stage in KINDS[name].stages and (name == "adamw_8bit" or job.zero.precision == "bf16"):
                setting = f'optimizer.kind="{name}"'
                tried.append((setting, _with(found["job"], optimizer=name), job.accumulation, price))
        sums = job.zero.stage == 2 and job.zero.precision == "bf16" and job.accumulation > 1
        if job.zero.stage >= 2 and job.zero.offload == "none" and device == "cuda" and not sums:
            there = _with(found["job"], offload="optimizer")
            tried.append(('zero.offload="optimizer"', there, job.accumulation, "the host moves the weights"))
    if "half" in found:
        tried.append(
            (f"accumulation={job.accumulation * 2}", found["half"], job.accumulation * 2, "same samples a step")
        )
    for key, (_, recomputed) in RECOMPUTE.items():
        if key in found:
            setting = f"{key}={json.dumps(recomputed)}"
            tried.append((setting, found[key], job.accumulation, "a third more computation"))
    made = []
    for setting, variant, accumulation, price in tried:
        total = rank_bytes(variant, ranks, accumulation, device)["total"]
        if total < before * 0.98:
            made.append({"set": setting, "needed_gb": round((total + overhead) / 1e9, 2), "price": price})
    return made


def _with(found: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {**found, "phases": [{**phase, **changes} for phase in found["phases"]]}


def _as_bf16(found: Mapping[str, Any]) -> dict[str, Any]:
    phases = [{**p, "precision": "bf16", "pass": [(n, held / 2) for n, held in p["pass"]]} for p in found["phases"]]
    return {**found, "phases": phases}


NAMES = {
    "weights": "weights",
    "gathered": "weights gathered from other ranks",
    "master": "master weights, fp32",
    "moments": "optimizer state",
    "average": "moving average, fp32",
    "gradients": "gradients and their buffer",
    "pass": "activations at their highest",
    "start": "more than that while it loads",
    "frozen": "frozen modules",
    "input": "batch",
    "other": "untrained parts",
}


def render(facts: Mapping[str, Any]) -> str:
    """The facts as text for a person."""
    where = "GPU" if facts["device"] == "cuda" else "rank"
    lines = [
        f"{facts['parameters']:,} trained parameters; {facts['ranks']} ranks with {facts['samples']} samples at a time"
    ]
    for name, label in NAMES.items():
        if value := facts["bytes"].get(name):
            lines.append(f"  {label:<34} {value / 1e9:9.3f} GB")
    overhead = "CUDA, NCCL, cuDNN (an allowance)" if where == "GPU" else "Python and libraries"
    lines.append(f"  {overhead:<34} {facts['needed_gb'] - facts['bytes']['total'] / 1e9:9.3f} GB")
    verdict = {True: "fits", False: "DOES NOT FIT", None: f"memory of a {where} unknown: give --gpu-gb or gpu_gb"}
    room = f" of {facts['room_gb']:g} GB" if facts["room_gb"] else ""
    lines.append(f"each {where} needs {facts['needed_gb']:.2f} GB{room}: {verdict[facts['fits']]}")
    if where == "GPU":
        host = f" of resources.mem_gb = {facts['host_room_gb']:g}" if facts["host_room_gb"] else ""
        short = ", WHICH IS TOO LITTLE" if facts["host_fits"] is False else ""
        lines.append(f"main memory of a node at the start: {facts['host_gb']:.1f} GB{host}{short}")
    lines.append(f"a checkpoint takes {facts['checkpoint_gb']:.2f} GB")
    time = facts["time"]
    lines.append(f"{time['tflop_per_sample']:g} TFLOP a sample, forward and backward, with what is recomputed")
    if "hours" in time:
        basis = f"measured up to step {time['step']}" if time["basis"] == "measured" else time["basis"]
        gpus = f", {time['gpu_hours']:g} GPU-hours" if facts["device"] == "cuda" else ""
        lines.append(f"{time['samples_per_s']:g} samples/s ({basis}): {time['hours']:g} h{gpus} in all")
        if time["step"]:
            left = f", {time['gpu_hours_left']:g} GPU-hours" if facts["device"] == "cuda" else ""
            lines.append(f"  {time['hours_left']:g} h{left} left")
    else:
        lines.append("time: unknown until a few steps were measured (or give --gpu a100, …)")
    if facts["suggestions"] and facts["fits"] is not True:
        lines.append("to need less:")
        for item in facts["suggestions"]:
            lines.append(f"  --set {item['set']:<26} {item['needed_gb']:8.2f} GB   {item['price']}")
    return "\n".join(lines)
