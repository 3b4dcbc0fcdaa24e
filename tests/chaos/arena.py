"""A project on a small disk of its own, on a private cluster, whose tasks run a Python that can be stopped anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2]
sys.path.append(str(SOURCE / "tests" / "slurm"))

from lab import Cluster  # noqa: E402

DISK_MB = 4096
"""Submissions are refused where less than a gigabyte is free."""


def python_with_hook(folder: Path) -> Path:
    """An environment that has this one's packages and imports `chaos_hook` at its start; its interpreter."""
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    packages = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in packages]
    lines.append(f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import chaos_hook")
    (site / "chaos.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python"


def may_mount(folder: Path) -> bool:
    """Whether this user may mount: small disks and read-only folders need it."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return done.returncode == 0


@dataclass
class Arena:
    """One scenario: a project, and what disturbs it."""

    cluster: Cluster
    folder: Path
    python: Path
    mounted: bool
    """Whether the project lies on a small disk of its own."""
    job: tuple[str, ...] = ()
    """The command line that is typed again and again."""
    submitted: list[float] = field(default_factory=list)
    """When it was typed and something was queued."""
    missed: list[tuple[str, str]] = field(default_factory=list)
    """Disturbances that the work was over before."""
    strikes: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What the command line said, for a failing test's message."""

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def talk(self) -> Path:
        """Where tool and tasks talk (see `chaos_hook`): not on the project's disk, which may be full."""
        return self.folder / "talk"

    # -- the user -----------------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> tuple[list[str], dict[str, Any]]:
        environment = {**os.environ, **self.cluster.environment, "SEMIOCITY_CHAOS": str(self.talk)}
        environment["PYTHONPATH"] = str(SOURCE)
        options = {"cwd": self.project, "env": environment, "text": True}
        return [str(self.python), "-m", "semiocity", *arguments], options

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`semiocity …` typed in the project."""
        command, options = self.command(*arguments)
        done = subprocess.run(command, capture_output=True, **options)
        self.said.append(f"$ semiocity {' '.join(arguments[:2])} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def live(self) -> dict[str, str]:
        """Jobs in partition main that wait or run; a controller that is away holds them still."""
        while True:
            with suppress(RuntimeError):
                out = self.cluster.call("squeue", "--noheader", "--partition=main", "--format=%A|%T|%r")
                jobs = [line.split("|") for line in out.splitlines()]
                if held := [job for job, _, reason in jobs if "launch failed" in reason]:
                    self._administer(held)
                return {job: state for job, state, _ in jobs}
            time.sleep(0.5)

    def _administer(self, held: list[str]) -> None:
        """What a site's administrator does after a controller lost its newest state: it gave job ids away once more,
        nodes that knew them refused, were drained, and the jobs are held."""
        with suppress(RuntimeError):
            for line in self.cluster.call("sinfo", "--noheader", "--Node", "--format=%N|%E").splitlines():
                node, why = line.split("|")
                if "Duplicate jobid" in why:
                    self.cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
            for job in held:
                self.cluster.call("scontrol", "release", job)

    # -- traps --------------------------------------------------------------------------------------------------------

    def arm(self, name: str, work: str, phase: str, hold_s: float = 60.0) -> None:
        """From now on the next process that comes to this point stops there."""
        partial = self.talk / ".trap.tmp"
        partial.write_text(json.dumps({"id": name, "work": work, "phase": phase, "hold_s": hold_s}))
        partial.replace(self.talk / "trap.json")

    def disarm(self) -> None:
        (self.talk / "trap.json").unlink(missing_ok=True)

    def hit(self, name: str) -> dict[str, Any] | None:
        """Who stopped at the trap, if somebody did."""
        try:
            found: dict[str, Any] = json.loads((self.talk / f"{name}.hit.json").read_text())
        except FileNotFoundError:
            return None
        return found

    def release(self, name: str) -> None:
        (self.talk / f"{name}.go").touch()

    def units(self) -> list[dict[str, Any]]:
        """Every unit of work that any task did, in order."""
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.talk / "units.jsonl").read_text().splitlines()]
        return []

    # -- the disk -----------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Leave no room on the project's disk: it shrinks to what is on it."""
        for _ in range(50):
            state = os.statvfs(self.project)
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            with suppress(subprocess.CalledProcessError):  # somebody wrote meanwhile, and it does not fit any more
                return self._resize(str(used))
        raise RuntimeError(f"{self.project}: never as small as what is on it")

    def make_room(self) -> None:
        self._resize(f"{DISK_MB}m")

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.project)], check=True)


@contextmanager
def arena(cluster: Cluster, folder: Path, python: Path, template: Path, *, mount: bool) -> Iterator[Arena]:
    """A scenario that begins with a copy of the project `template`."""
    made = Arena(cluster, folder, python, mount)
    made.talk.mkdir(parents=True)
    made.project.mkdir()
    if mount:
        options = f"size={DISK_MB}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(made.project)], check=True)
    try:
        shutil.copytree(template, made.project, dirs_exist_ok=True)
        yield made
    finally:
        made.disarm()
        for job in made.live():
            with suppress(RuntimeError):
                cluster.call("scancel", job)
        end = time.monotonic() + 60
        while made.live() and time.monotonic() < end:
            time.sleep(0.5)
        if mount:
            subprocess.run(["umount", "--lazy", str(made.project)], check=False)


# ---------------------------------------------------------------- processes


def parent(pid: int) -> int:
    """Process id of a process's parent; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def step_daemon(pid: int) -> int:
    """The slurmstepd above a process; 0 when there is none."""
    while pid > 1:
        pid = parent(pid)
        if name_of(pid) == "slurmstepd":
            return pid
    return 0


def end(pids: Sequence[int]) -> None:
    for pid in pids:
        if pid > 1:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
