"""The doctor's job on a compute node: what it finds inside the container, and whether signals and requeueing work.

Its first life waits for USR2 and asks to come back as every other work does; its second waits for TERM. Each leaves
node.RESTART.json in the run folder. Standard library only, but for torch where GPUs are asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from semiocity.files import write_json
from semiocity.launch import doctor_probe
from semiocity.launch.world import World

WAIT_S = 60.0
"""How long a life waits for its signal."""
LABELS = Path("/.singularity.d/labels.json")
TORCH = """
import json, torch
print(json.dumps({"cuda": torch.version.cuda, "gpus": torch.cuda.device_count(),
                  "works": bool(torch.cuda.is_available() and torch.ones(8, device="cuda").sum() == 8)}))
"""
NCCL = """
import os, torch, torch.distributed as dist
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
store = dist.TCPStore("127.0.0.1", 0, 1, True)
dist.init_process_group("nccl", store=store, rank=0, world_size=1)
x = torch.ones(8, device="cuda"); dist.all_reduce(x); torch.cuda.synchronize(); dist.destroy_process_group()
"""


def file_of(run: Path, restart: int) -> Path:
    return run / f"node.{restart}.json"


def run(data: dict[str, Any], world: World, report: Callable[..., None]) -> bool:
    """Gather, say so, wait for the signal. False asks to be requeued."""
    folder = Path(data["run"])
    seen: dict[str, float] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        seen.setdefault(signal.Signals(number).name, time.time())

    facts = gather(folder, data["job"]["gpus"], data["job"]["models"])
    if data["executor"] != "slurm":
        write_json(file_of(folder, 0), {**facts, "signals": {}, "waiting": False})
        return True
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, note)
    wanted = ["SIGUSR2", "SIGTERM"][world.restart :][: 1 if data["job"]["requeue"] else 2]
    for name in wanted:
        ready = time.time()
        told = {**facts, "restart": world.restart, "ready": ready, "signals": dict(seen), "waiting": name}
        write_json(file_of(folder, world.restart), told)
        report(waiting=name)
        while name not in seen and time.time() < ready + WAIT_S:
            time.sleep(0.05)
    write_json(file_of(folder, world.restart), {**facts, "restart": world.restart, "signals": seen, "waiting": False})
    return not (data["job"]["requeue"] and world.restart == 0)


def gather(run: Path, gpus: int, models: list[str]) -> dict[str, Any]:
    """Facts about the inside of the job."""
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    facts: dict[str, Any] = {
        "versions": doctor_probe.versions(),
        "environment": {key: os.environ[key] for key in ("HF_HUB_OFFLINE", "NCCL_SOCKET_IFNAME") if key in os.environ},
        "folder": doctor_probe.try_folder(run),
        "shm_kb": f"{shm.f_blocks * shm.f_frsize // 1024} {shm.f_bavail * shm.f_frsize // 1024}" if shm else "",
        "unseen": [path for path in models if not Path(path).is_dir()],
        "image": json.loads(LABELS.read_text()).get("semiocity.content", "") if LABELS.is_file() else None,
    }
    if gpus:
        facts["torch"] = _torch()
        facts["nccl"] = _nccl()
    return facts


def _torch() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _nccl() -> list[str]:
    """NCCL's own lines about its transport."""
    environment = {**os.environ, "NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET"}
    environment.pop("NCCL_DEBUG_FILE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", NCCL], capture_output=True, text=True, env=environment, timeout=180
        )
    except subprocess.TimeoutExpired:
        return ["timeout"]
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "NET/" in line]
    return lines[:20] or (done.stderr.strip().splitlines() or ["no message"])[-1:]
