"""What differs from site to site in a submission: from the site file and a job to sbatch's words. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semiocity.config import Cluster, Resources
from semiocity.sbatch_options import MERGED

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""For every job: nodes reach no hub, and a library that tries waits for minutes before it says so."""


def request(cluster: Cluster, asked: Resources) -> dict[str, Any]:
    """GPUs, memory and whole nodes, as submitit's parameters; what is not asked for is None.

    `asked.mem_gb` is the memory of a node, however the site wants it said. Resources that the site file wants for every
    job (`[sbatch] gres`) come with the GPUs.
    """
    parameters: dict[str, Any] = {"exclusive": cluster.exclusive or None, "gres": cluster.sbatch.get("gres")}
    if asked.gpus_per_node:
        count = f"{cluster.gpu_type}:{asked.gpus_per_node}" if cluster.gpu_type else asked.gpus_per_node
        match cluster.gpu_option:
            case "gpus-per-node":
                parameters["gpus_per_node"] = count
            case "gres":
                parameters["gres"] = ",".join(filter(None, [f"gpu:{count}", parameters["gres"]]))
    if asked.mem_gb is not None:
        match cluster.memory_option:
            case "mem-per-cpu":
                parameters["mem_per_cpu"] = _megabytes(asked.mem_gb / (asked.ranks_per_node * asked.cpus_per_rank))
            case "mem-per-gpu" if asked.gpus_per_node:
                parameters["mem_per_gpu"] = _megabytes(asked.mem_gb / asked.gpus_per_node)
            case "mem" | "mem-per-gpu":
                parameters["mem"] = _megabytes(asked.mem_gb)
    return parameters


def exclude(cluster: Cluster, avoided: Sequence[str]) -> str | None:
    """Nodes to keep away from, as sbatch reads it: those of the site file, and those that a run has learnt to avoid."""
    wanted = cluster.sbatch.get("exclude")
    return ",".join([*([str(wanted)] if wanted else []), *avoided]) or None


def extra(cluster: Cluster) -> dict[str, Any]:
    """Further sbatch options: whether jobs come back, who gets mail, and what the site file adds.

    But for what is merged with a job's own, by `request` and `exclude`.
    """
    notify = cluster.notify
    mail = {"mail-user": notify.mail, "mail-type": ",".join(notify.mail_on)} if notify.mail else {}
    further = {name: value for name, value in cluster.sbatch.items() if name.replace("_", "-") not in MERGED}
    return {"requeue" if cluster.requeue else "no-requeue": True, **mail, **further}


def _megabytes(gb: float) -> str:
    return f"{int(gb * 1024)}M"  # rounded down: the sum must not pass what a node has
