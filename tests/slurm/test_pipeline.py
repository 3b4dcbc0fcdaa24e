"""Pipelines on a real SLURM: everything queued at once, each step planned when what it reads is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

pytestmark = pytest.mark.slurm

PIPELINE = """
dataset = "data/city"

[steps.pack]
pack = "shards/city.toml"
set = { "source.size" = [32, 32], "source.train" = 40, "source.val" = 8, shard_rows = 16 }

[steps.caption]
stage = "jobs/caption.toml"

[steps.hash]
stage = "jobs/hash.toml"

[steps.duplicates]
reduce = "jobs/duplicates.toml"
set = { "resources.mem_gb" = 0.5, "resources.cpus_per_rank" = 1 }

[steps.night]
view = "views/all.toml"
after = ["duplicates"]
"""
VIEW = 'dataset = "data/city"\nfields = ["base.image", "caption.text", "hash.phash"]\n'


@pytest.fixture
def project(tmp_path: Path, cluster: Any) -> Project:
    made = make_project(tmp_path / "p", 'executor = "slurm"\npartition = "main"\n', cluster.environment)
    (made.folder / "views").mkdir()
    (made.folder / "views" / "all.toml").write_text(VIEW)
    (made.folder / "jobs" / "pipelines").mkdir(exist_ok=True)
    (made.folder / "jobs" / "pipelines" / "p.toml").write_text(PIPELINE)
    return made


def states(project: Project, *options: str) -> dict[str, tuple[str, str]]:
    done = project.run("pipeline", "jobs/pipelines/p.toml", "--json", *options)
    return {item["step"]: (item["state"], item["why"]) for item in json.loads(done.stdout)}


def test_all_steps_run_by_themselves_and_only_what_changed_runs_again(project: Project) -> None:
    assert states(project)["night"] == ("waits", "after duplicates, pack, caption, hash")
    first = project.run("pipeline", "jobs/pipelines/p.toml", "--wait")
    assert {state for state, _ in states(project).values()} == {"complete"}, first.stdout
    again = project.run("pipeline", "jobs/pipelines/p.toml", "--wait")
    assert "nothing to do" in again.stdout
