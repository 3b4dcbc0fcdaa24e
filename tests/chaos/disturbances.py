"""What can happen to a job on a cluster: each kind a function of the arena and of who stopped at the trap.

A function returns when the disturbance itself is over; what follows from it may still be going on.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from arena import Arena, end, step_daemon

PHASES = {
    "caption": ("work", "save", "rename", "receipt"),
    "train": ("work", "save", "rename", "receipt", "rendezvous"),
}
"""Where work is disturbed: in a batch or step; before, between and after the files of a shard or checkpoint appear;
and while ranks look for one another."""
Hit = dict[str, Any]
Strike = Callable[[Arena, Hit, random.Random], None]


def kill_rank(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """SIGKILL for one process: the kernel's out-of-memory killer does that."""
    end([hit["pid"]])


def kill_step(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """SIGKILL for the slurmstepd of srun's step; its tasks may live on without it."""
    end([step_daemon(hit["pid"])])


def kill_batch(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """SIGKILL for the batch script and the srun in it."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    scripts = [line.split(None, 2) for line in listed if f"job{int(hit['job']):05d}/slurm_script" in line]
    children = [line.split(None, 2) for line in listed if line.split(None, 2)[1] in {script[0] for script in scripts}]
    end([int(process[0]) for process in (*scripts, *children)])


def kill_slurmd(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """SIGKILL for a node's daemon, which is started again."""
    node = hit["node"]
    file = arena.cluster.folder / "run" / f"slurmd.{node}.pid"
    end([int(file.read_text())])
    time.sleep(0.5)
    arena.release(hit["id"])
    _daemon(arena, "slurmd", "-N", node)


def kill_slurmctld(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """SIGKILL for the controller, which is started again from its saved state a moment later. That may be some seconds
    old: `scenario.drive` sees to it that nodes say anew what runs there."""
    file = arena.cluster.folder / "run" / "slurmctld.pid"
    end([int(file.read_text())])
    arena.release(hit["id"])
    time.sleep(2.0)
    _daemon(arena, "slurmctld")
    for _ in range(120):
        with suppress(RuntimeError):
            arena.cluster.call("squeue", "--noheader")
            return
        time.sleep(0.25)
    raise AssertionError("slurmctld does not answer after its restart")


def scancel(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """The user, or an administrator, ends the job."""
    _call(arena, "scancel", hit["job"])


def preempt(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """A job of the partition that preempts wants the node."""
    urgent = arena.cluster.call(
        "sbatch", "--parsable", "--partition=urgent", f"--nodelist={hit['node']}", "--exclusive",
        "--output=/dev/null", "--wrap=sleep 1",
    ).strip()  # fmt: skip
    time.sleep(0.5)
    arena.release(hit["id"])
    arena.cluster.wait(urgent, timeout_s=180)


def node_down(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """The node fails, and is back a moment later."""
    arena.cluster.call("scontrol", "update", f"NodeName={hit['node']}", "State=DOWN", "Reason=chaos")
    arena.release(hit["id"])
    time.sleep(2.0)
    # Its daemon may have reported for work in between, which brings the node back by itself.
    _call(arena, "scontrol", "update", f"NodeName={hit['node']}", "State=RESUME")


def time_limit(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """The limit is about to be reached: USR2 comes, the job saves and comes back. Then it gets more time again."""
    before = arena.cluster.job(hit["job"])
    _call(arena, "scontrol", "update", f"JobId={hit['job']}", "TimeLimit=2")
    arena.release(hit["id"])
    until = time.monotonic() + 45
    while time.monotonic() < until:
        with suppress(RuntimeError, KeyError):
            now = arena.cluster.job(hit["job"])
            if now["Restarts"] != before["Restarts"] or now["JobState"] not in ("RUNNING", "COMPLETING"):
                break
        time.sleep(0.2)
    _call(arena, "scontrol", "update", f"JobId={hit['job']}", f"TimeLimit={before['TimeLimit']}")


def full_disk(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """No room for data, logs and notes; then somebody tidies up."""
    arena.fill()
    arena.release(hit["id"])
    time.sleep(3.0)
    arena.make_room()


def read_only(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """The file system with the run folders turns read-only for a while."""
    runs = str(arena.project / "runs")
    # A second mount over the first: files that are open, such as logs, would keep the first one from turning.
    subprocess.run(["mount", "--bind", runs, runs], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", runs], check=True)
        arena.release(hit["id"])
        time.sleep(3.0)
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)


def clock(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """The tasks' clocks jump by hours, and so do the times of all files; forward or back."""
    jump = chance.choice((-3, 3)) * 3600
    (arena.talk / "clock").write_text(str(jump))
    for folder in ("runs", "data"):
        for path in (arena.project / folder).rglob("*"):
            with suppress(FileNotFoundError):
                at = path.stat().st_mtime + jump
                os.utime(path, (at, at))
    # In the middle of this somebody dies, so that leases and notes with odd times are what the next one finds.
    end([hit["pid"]])


def twice(arena: Arena, hit: Hit, chance: random.Random) -> None:
    """A task dies, and two people submit the same job at the same moment."""
    end([hit["pid"]])
    command, options = arena.command(*arena.job)
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) for _ in "ab"]
    for process in started:
        arena.said.append(f"$ twice -> {process.communicate()[0]}")
        assert process.returncode in (0, 2), arena.said[-1]


KINDS: dict[str, Strike] = {
    "kill_rank": kill_rank,
    "kill_step": kill_step,
    "kill_batch": kill_batch,
    "kill_slurmd": kill_slurmd,
    "kill_slurmctld": kill_slurmctld,
    "scancel": scancel,
    "preempt": preempt,
    "node_down": node_down,
    "time_limit": time_limit,
    "full_disk": full_disk,
    "read_only": read_only,
    "clock": clock,
    "twice": twice,
}
NEED_MOUNTS = {"full_disk", "read_only"}


def every() -> list[tuple[str, str, str]]:
    """(work, phase, kind) of everything that can be tried once."""
    return [(work, phase, kind) for work, phases in PHASES.items() for phase in phases for kind in KINDS]


def _daemon(arena: Arena, program: str, *options: str) -> None:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert path is not None
    conf = arena.cluster.environment["SLURM_CONF"]
    subprocess.run([path, "-f", conf, *options], env={**os.environ, "SLURM_CONF": conf}, check=True)


def _call(arena: Arena, *command: str) -> None:
    """A command about a job that may have ended in the meantime."""
    with suppress(RuntimeError):
        arena.cluster.call(*command)
