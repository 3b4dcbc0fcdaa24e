"""Jobs that SLURM holds: `status` names them, a second submission says so, and they go on when they are released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

pytestmark = pytest.mark.slurm

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=8", "--set", "source.val=4", "--set", "shard_rows=4"]


@pytest.fixture
def project(tmp_path: Path, cluster: Any) -> Project:
    made = make_project(tmp_path, 'executor = "local"\n', cluster.environment)
    made.run("pack", "shards/city.toml", *SETS)
    (tmp_path / "jobs" / "cluster.toml").write_text('executor = "slurm"\npartition = "main"\n')
    return made


def test_what_is_held_is_named_with_the_command_that_lets_it_go(project: Project, cluster: Any) -> None:
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        project.run("caption", "jobs/caption.toml", "--set", "resources.shards_per_task=1")
        run = project.run_status("caption-city")
        array = run["jobs"][0]
        project.wait(lambda: bool(project.run_status("caption-city")["held"]), "a reason that squeue tells")
        (site,) = project.run_status("caption-city")["held"]
        assert (site["reason"], site["stuck"]) == ("PartitionDown", False)
        assert len(site["jobs"]) in (3, 4), "the merge waits for the others or for the partition"
        assert project.run("status", "caption-city").returncode == 0, "the site mends that"
        cluster.call("scontrol", "uhold", array)
        said = project.run("status", "caption-city", check=False)
        assert said.returncode == 1
        assert f"3 tasks wait (JobHeldUser): held by you (`scontrol hold`); `scontrol release {array}`" in said.stdout
        again = project.run("caption", "jobs/caption.toml", "--set", "resources.shards_per_task=1")
        assert "already queued or running" in again.stdout
        assert f"`scontrol release {array}`" in again.stderr
        cluster.call("scontrol", "release", array)
    finally:
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
    project.run("caption", "jobs/caption.toml", "--set", "resources.shards_per_task=1", "--wait")
    done = project.run_status("caption-city")
    assert set(done["tasks"]) == {"done"} and done["held"] == []
