"""What differs from site to site in a submission: from the site file and a job to sbatch's words. Pure functions."""

from __future__ import annotations

from typing import Any

from semiocity.config import Cluster, Resources

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""For every job: nodes reach no hub, and a library that tries waits for minutes before it says so."""


def request(cluster: Cluster, asked: Resources) -> dict[str, Any]:
    """GPUs, memory and whole nodes, as submitit's parameters; what is not asked for is None.

    `asked.mem_gb` is the memory of a node, however the site wants it said.
    """
    parameters: dict[str, Any] = {"exclusive": cluster.exclusive or None}
    if asked.gpus_per_node:
        count = f"{cluster.gpu_type}:{asked.gpus_per_node}" if cluster.gpu_type else asked.gpus_per_node
        match cluster.gpu_option:
            case "gpus-per-node":
                parameters["gpus_per_node"] = count
            case "gres":
                parameters["gres"] = f"gpu:{count}"
    if asked.mem_gb is not None:
        match cluster.memory_option:
            case "mem-per-cpu":
                parameters["mem_per_cpu"] = _megabytes(asked.mem_gb / (asked.ranks_per_node * asked.cpus_per_rank))
            case "mem-per-gpu" if asked.gpus_per_node:
                parameters["mem_per_gpu"] = _megabytes(asked.mem_gb / asked.gpus_per_node)
            case "mem" | "mem-per-gpu":
                parameters["mem"] = _megabytes(asked.mem_gb)
    return parameters


def extra(cluster: Cluster) -> dict[str, Any]:
    """Further sbatch options: whether jobs come back, who gets mail, and what the site file adds."""
    notify = cluster.notify
    mail = {"mail-user": notify.mail, "mail-type": ",".join(notify.mail_on)} if notify.mail else {}
    return {"requeue" if cluster.requeue else "no-requeue": True, **mail, **cluster.sbatch}


def _megabytes(gb: float) -> str:
    return f"{int(gb * 1024)}M"  # rounded down: the sum must not pass what a node has
