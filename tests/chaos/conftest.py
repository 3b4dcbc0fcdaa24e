"""The cluster and the undisturbed results that all scenarios share."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import scenario
from arena import SOURCE, Cluster, arena, may_mount, python_with_hook


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of its own: its daemons are killed."""
    if shutil.which("slurmctld", path="/usr/sbin:/usr/bin") is None:
        reason = "slurm: slurmctld missing; apt-get install slurmctld slurmd slurm-client munge"
        if "slurm" in os.environ.get("SEMIOCITY_REQUIRE", "").split(","):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-chaos-", dir="/tmp"))
    made = Cluster.start(folder)
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> dict[str, Any]:
    """Python with the hook, a packed project to copy, and whether this user may mount."""
    folder = tmp_path_factory.mktemp("ground")
    python = python_with_hook(folder / "python")
    template = folder / "template"
    for name in ("jobs", "shards"):
        shutil.copytree(SOURCE / name, template / name, ignore=shutil.ignore_patterns("cluster.toml"))
    (template / "jobs" / "cluster.toml").write_text('executor = "local"\n')
    with arena(cluster, folder / "pack", python, template, mount=False) as packing:
        done = packing.run("pack", "shards/city.toml", *scenario.words(scenario.PACK))
        assert done.returncode == 0, packing.said
        shutil.rmtree(template)
        shutil.copytree(packing.project, template)
    shutil.rmtree(template / "runs")
    (template / "jobs" / "cluster.toml").write_text(scenario.CLUSTER)
    return {"python": python, "template": template, "mount": may_mount(folder / "mnt"), "folder": folder}


@pytest.fixture(scope="session")
def calm(cluster: Cluster, ground: dict[str, Any]) -> Callable[[str], Any]:
    """What each work gives undisturbed; made when it is first asked for."""

    @cache
    def made(work: str) -> Any:
        with arena(cluster, ground["folder"] / f"calm-{work}", ground["python"], ground["template"], mount=False) as a:
            scenario.drive(a, work, [], random.Random(0))
            return scenario.outcome(a.project, work)

    return made
