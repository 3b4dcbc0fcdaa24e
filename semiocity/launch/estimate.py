"""What a submission asks of the cluster, in a few lines for a person. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from semiocity.launch.jobs import Work


def summary(work: Work, tasks: Sequence[Sequence[int]], shard_s: float | None) -> str:
    """Tasks, shards, and the hours that are asked for: of GPUs where there are some, of cores otherwise. `shard_s` is
    the measured time of a shard, None when nothing was measured."""
    asked = work.resources
    shards = sum(len(task) for task in tasks)
    parts = [f"{len(tasks)} task{'s' * (len(tasks) != 1)}"]
    if work.shards:
        parts.append(f"{shards} shard{'s' * (shards != 1)}")
    gpus = asked.nodes * asked.gpus_per_node
    width, unit = (gpus, "GPU") if gpus else (asked.nodes * asked.ranks_per_node * asked.cpus_per_rank, "core")
    limit_h = len(tasks) * width * asked.timeout_min / 60
    parts.append(f"at most {limit_h:,.1f} {unit}-hours by the time limit")
    lines = ["# " + ", ".join(parts)]
    if shard_s is not None and shards:
        hours = shards * shard_s * width / 3600
        lines.append(f"# about {hours:,.2f} {unit}-hours by what was measured, {shard_s:.3g} s a shard")
    return "\n".join(lines)
