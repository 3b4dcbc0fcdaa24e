"""A user's project folder on the loopback cluster: job files, a cluster file, and the command line run in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from semiocity.launch import status

SOURCE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Project:
    """Folder with jobs/, shards/ and jobs/cluster.toml; `run` is `semiocity …` typed in it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "semiocity", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"semiocity {' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n{self.logs()}")
        return done

    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "--json", check=False).stdout)

    def run_status(self, name: str) -> dict[str, Any]:
        """One run of it, asked in this process: tests wait for it, and a process a look would take the jobs' cores."""
        with pytest.MonkeyPatch.context() as patched:
            for key, value in self.environment.items():
                patched.setenv(key, value)
            found = status.collect(self.folder / "data", self.folder / "runs", [self.folder / "runs" / name])
        return dict(found["runs"][0])

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
        """Poll until `condition` holds; the logs are shown when it never does."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"after {timeout_s:.0f} s: not {what}\n{self.logs()}")
            time.sleep(0.25)

    def logs(self, lines: int = 25) -> str:
        """The ends of all logs of newest attempts, for a failing test's message."""
        parts = []
        for log in sorted(self.folder.glob("runs/*/attempts/*/logs/*_log.out")):
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"--- {log.relative_to(self.folder)}\n" + "\n".join(tail))
        return "\n".join(parts[-6:])


def make_project(folder: Path, cluster_toml: str, environment: Mapping[str, str]) -> Project:
    """Copy the repository's recipes and jobs into `folder` and write its cluster file."""
    for name in ("jobs", "shards"):
        shutil.copytree(SOURCE / name, folder / name, ignore=shutil.ignore_patterns("cluster.toml"))
    (folder / "jobs" / "cluster.toml").write_text(cluster_toml)
    return Project(folder, environment)
