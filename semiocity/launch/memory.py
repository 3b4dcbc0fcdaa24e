"""Settings of memory that a training leaves to the submission ("auto"), and offload that the host cannot hold.

Both are settled on the login node, from `fit`'s figures, before anything is queued: the task reads a plain job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import fit
from semiocity.launch.jobs import Work
from semiocity.train.optimizer_options import KINDS

if TYPE_CHECKING:
    from semiocity.train.options import TrainJob


def settle(work: Work, cluster: Cluster) -> tuple[Work, list[str]]:
    """`work` with nothing left to choose, and lines that say what was chosen and why.

    Raises UserError when nothing fits, when the GPUs' memory is unknown, or when offload needs more than
    `resources.mem_gb`.
    """
    if work.kind != "train" or not (work.job.get("choose") or work.job["zero"].get("offload", "none") != "none"):
        return work, []
    from semiocity.train.options import TrainJob

    job = TrainJob.model_validate(work.job)
    asked = job.resources
    ranks = asked.nodes * asked.ranks_per_node
    samples = job.global_batch // (ranks * job.accumulation)
    key = next((key for key in fit.RECOMPUTE if key in job.choose), None)
    variants: dict[Any, dict[str, Any]] = {"as it is": {"samples": samples, "model": {}}}
    if key is not None:
        variants = {
            str(value): {"samples": samples, "model": {key.removeprefix("model."): value}}
            for value in fit.RECOMPUTE[key]
        }
    found = fit.measure(work, cluster, variants)
    if not job.choose:
        _refuse_offload(job, found["as it is"], ranks)
        return work, []
    return _choose(work, job, cluster, found, ranks, key)


def _refuse_offload(job: TrainJob, found: Mapping[str, Any], ranks: int) -> None:
    need, room = _host_gb(job, found, ranks), job.resources.mem_gb
    if room is not None and need > room:
        raise UserError(
            f'zero.offload = "{job.zero.offload}": the ranks of a node would keep {need:.1f} GB in its memory, and '
            f"resources.mem_gb is {room:g}. Ask for more memory or nodes, or train fewer parameters"
        )


def _host_gb(job: TrainJob, found: Mapping[str, Any], ranks: int) -> float:
    kept = sum(fit.offloaded(phase, ranks) for phase in found["phases"])
    return job.resources.ranks_per_node * (kept + fit.RANK_OVERHEAD) / 1e9


def _choose(
    work: Work, job: TrainJob, cluster: Cluster, found: Mapping[str, Any], ranks: int, key: str | None
) -> tuple[Work, list[str]]:
    asked = job.resources
    device = "cuda" if asked.gpus_per_node else "cpu"
    room = fit.room_gb(job, cluster, None, device)
    if room is None:
        what = "gpu_gb in jobs/cluster.toml" if device == "cuda" else "resources.mem_gb"
        raise UserError(f'{job.choose[0]} = "auto" needs to know the memory of a {_place(device)}: set {what}')
    overhead = fit.GPU_OVERHEAD if device == "cuda" else fit.RANK_OVERHEAD
    limit = room * (fit.GPU_SHARE if device == "cuda" else 1)
    least = None
    for settings, facts in _candidates(job, found, ranks, key):
        need = (fit.rank_bytes(facts, ranks, job.accumulation, device)["total"] + overhead) / 1e9
        if settings["zero.offload"] != "none" and (asked.mem_gb is None or _host_gb(job, facts, ranks) > asked.mem_gb):
            continue
        least = need if least is None else min(least, need)
        if need <= limit:
            chosen = {name: settings[name] for name in job.choose}
            return _with(work, chosen), [
                f"{name} = {_toml(value)}: {_reason(name, settings, need, room, ranks, device)}"
                for name, value in chosen.items()
            ]
    raise UserError(
        f'nothing that "auto" may choose ({", ".join(job.choose)}) fits a {_place(device)} of {room:g} GB; the '
        f"least that a rank would need is {least or 0:.1f} GB. More GPUs, a larger accumulation, "
        'optimizer.kind = "adamw_bf16", zero.offload with enough resources.mem_gb, or training less would help'
    )


def _candidates(
    job: TrainJob, found: Mapping[str, Any], ranks: int, key: str | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings from the fastest to the one that needs the least, and `footprint`'s facts under them.

    Recomputing costs a quarter of the speed or so; stage 3 sends the weights over the network twice a pass; the host's
    memory is an order slower than either.
    """
    stages = [job.zero.stage]
    if "zero.stage" in job.choose:
        stages = [s for s in (2, 3, 0) if s in KINDS[job.optimizer.kind].stages and (s != 3 or ranks > 1)]
        if job.zero.precision == "bf16" or 2 in stages:
            stages = [s for s in stages if s]
    offloads = ["none"]
    if "zero.offload" in job.choose:
        offloads = ["none", "optimizer", "parameters"] if job.optimizer.kind == "adamw" else ["none"]
    else:
        offloads = [job.zero.offload]
    for offload in offloads:
        for stage in stages:
            if (offload != "none" and stage < 2) or (offload == "parameters" and stage != 3):
                continue
            if offload != "none" and stage == 2 and job.accumulation > 1 and job.zero.precision == "bf16":
                continue
            for name in found:
                phases = [{**phase, "stage": stage, "offload": offload} for phase in found[name]["phases"]]
                settings: dict[str, Any] = {"zero.stage": stage, "zero.offload": offload}
                if key is not None:
                    settings[key] = next(value for value in fit.RECOMPUTE[key] if str(value) == name)
                yield settings, {**found[name], "phases": phases}


def _reason(name: str, settings: Mapping[str, Any], need: float, room: float, ranks: int, device: str) -> str:
    fits = f"a {_place(device)} then needs {need:.1f} of {room:g} GB"
    match name:
        case "zero.stage" if settings[name] == 3:
            return f"with whole weights on each of {ranks} ranks it would not fit; {fits}"
        case "zero.offload" if settings[name] != "none":
            return f"without the host's memory it would not fit; {fits}"
        case "model.recompute" | "model.checkpoint" if settings[name]:
            return f"activations would not fit; {fits}"
        case _:
            return f"the fastest that fits; {fits}"


def _place(device: str) -> str:
    return "GPU" if device == "cuda" else "rank"


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def _with(work: Work, chosen: Mapping[str, Any]) -> Work:
    job = {**work.job, "choose": []}
    for key, value in chosen.items():
        table, _, name = key.partition(".")
        job[table] = {**job[table], name: value}
    return replace(work, job=job)
