"""A real SLURM cluster on this machine's loopback, seen from a test. `slurm-lab` beside this file boots and ends it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("slurm-lab")
FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"})


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Poll until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"after {timeout_s:.0f} s: not {what}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """Four nodes; partition `main`, preempted by `urgent`. Its jobs run as the user who booted it."""

    folder: Path
    environment: Mapping[str, str]
    """What SLURM's commands need beside the caller's own environment."""

    @classmethod
    def start(cls, folder: Path, nodes: int = 4) -> Cluster:
        """Boot it. `folder` must have a short path: it holds a Unix socket."""
        command = [str(SCRIPT), "start", str(folder), str(nodes), str(os.getpid())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"no SLURM cluster:\n{done.stderr}")
        return cls(folder, {"SLURM_CONF": done.stdout.strip()})

    def stop(self) -> None:
        """End every job and the daemons of this cluster."""
        self.call("scancel", "--partition=main", "--quiet")
        self.call("scancel", "--partition=urgent", "--quiet")
        subprocess.run([SCRIPT, "stop", str(self.folder)], check=True)

    def call(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def sbatch(self, script: str, *options: str, log: Path) -> str:
        """Submit a shell script that writes into `log`; the id of the job."""
        arguments = ("--parsable", f"--output={log}", "--open-mode=append", *options, f"--wrap={script}")
        return self.call("sbatch", *arguments).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows, for five minutes after the job's end too."""
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return {name: value for name, mark, value in (word.partition("=") for word in words) if mark}

    def squeue(self) -> dict[str, str]:
        """State by job id, of all jobs that wait or run; one line for each task of an array."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {fields[0]: fields[1] for fields in map(str.split, lines)}

    def wait(self, job: str, states: Collection[str] = FINISHED, timeout_s: float = 120) -> str:
        """Poll until the job is in one of `states`; its state then."""
        until(lambda: self.job(job)["JobState"] in states, f"job {job} in {', '.join(states)}", timeout_s)
        return self.job(job)["JobState"]
