"""Who am I among the ranks of this job: read once from the scheduler's environment, then passed on as a value."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Below the usual ephemeral range (from 32768), so that no outgoing connection holds the port by chance.
FIRST_PORT, PORTS = 10_000, 10_000


@dataclass(frozen=True)
class World:
    """One rank's place in its job."""

    rank: int
    size: int
    local_rank: int
    nodes: int
    master_addr: str
    master_port: int
    job_id: str
    """Job id as submitit writes it: `123`, or `123_4` in an array."""
    restart: int
    """How often the scheduler brought this job back; 0 the first time."""
    folder: Path | None = None
    """What this restart's ranks tell one another (see `semiocity.ranks`); None outside of a run."""

    def port(self, attempt: int) -> int:
        """The port of the `attempt`-th try to meet (from 0), when those before were somebody else's."""
        if attempt == 0:
            return self.master_port
        return port_of(f"{self.job_id}.{self.master_port}.{attempt}", self.restart)


def single(job_id: str = "0", restart: int = 0) -> World:
    """A world of one rank."""
    return World(0, 1, 0, 1, "127.0.0.1", port_of(job_id, restart), job_id, restart)


def port_of(job_id: str, restart: int) -> int:
    """The rendezvous port: another one for each job and restart, so that ranks which outlive a preemption cannot
    join the next rendezvous."""
    spread = int.from_bytes(hashlib.sha256(f"{job_id}.{restart}".encode()).digest()[:4], "big")
    return FIRST_PORT + spread % PORTS


def from_environment(environment: Mapping[str, str] = os.environ) -> World:
    """The world that SLURM or submitit's local executor describes; a single rank outside of both."""
    match environment.get("SUBMITIT_EXECUTOR"):
        case "slurm":
            job_id = environment["SLURM_JOB_ID"]
            if "SLURM_ARRAY_JOB_ID" in environment:
                job_id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
            restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
            size = int(environment.get("SLURM_NTASKS", "1"))
            nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
            # A single node needs no name service.
            address = "127.0.0.1" if nodes == 1 else first_host(environment["SLURM_JOB_NODELIST"])
            return World(
                rank=int(environment.get("SLURM_PROCID", "0")),
                size=size,
                local_rank=int(environment.get("SLURM_LOCALID", "0")),
                nodes=nodes,
                master_addr=address,
                master_port=port_of(job_id, restart),
                job_id=job_id,
                restart=restart,
            )
        case "local":
            job_id = environment["SUBMITIT_LOCAL_JOB_ID"]
            restart = int(environment.get("SEMIOCITY_RESTART", "0"))
            return World(
                rank=int(environment["SUBMITIT_LOCAL_GLOBALID"]),
                size=int(environment["SUBMITIT_LOCAL_NTASKS"]),
                local_rank=int(environment["SUBMITIT_LOCAL_LOCALID"]),
                nodes=1,
                master_addr="127.0.0.1",
                master_port=port_of(f"{socket.gethostname()}.{job_id}", restart),
                job_id=job_id,
                restart=restart,
            )
        case _:
            return single(str(os.getpid()))


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: `gpu[03-05,9],cpu1` gives `gpu03`. `scontrol` is not in the image."""
    head, bracket, rest = nodelist.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    inside, _, tail = rest.partition("]")
    first = inside.split(",")[0].split("-")[0]
    # A second bracket (`rack[1-2]n[1-4]`) belongs to the same name until the next comma.
    suffix = tail.split(",")[0]
    return head + first + (first_host(suffix) if suffix else "")
