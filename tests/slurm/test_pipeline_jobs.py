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
set = { "args.batch" = 2 }

[steps.hash]
stage = "jobs/hash.toml"

[steps.all]
view = "views/all.toml"
"""
VIEW = 'dataset = "data/city"\nfields = ["base.image", "caption.text", "hash.phash"]\n'
SLOW = ("--set", "caption.args.rehearse_slow_batch_s=2")
FILE = "jobs/pipelines/p.toml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Project:
    folder = tmp_path_factory.mktemp("pipeline") / "p"
    made = make_project(folder, 'executor = "slurm"\npartition = "main"\n', cluster.environment)
    (folder / "views").mkdir()
    (folder / "views" / "all.toml").write_text(VIEW)
    (folder / FILE).write_text(PIPELINE)
    return made


def plan(project: Project, *options: str) -> dict[str, tuple[str, str]]:
    done = project.run("pipeline", FILE, "--json", *options)
    return {item["step"]: (item["state"], item["why"]) for item in json.loads(done.stdout)}


def receipts(project: Project, column: str) -> dict[str, int]:
    files = project.folder.glob(f"data/city/columns/{column}/*/00000/*.json")
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_a_cancelled_step_keeps_back_what_needs_it_and_the_same_command_goes_on(project: Project) -> None:
    assert plan(project)["all"] == ("waits", "after pack, caption, hash")
    project.run("pipeline", FILE, "--set", "caption.args.rehearse_slow_batch_s=3")
    # Nobody is logged in any more: pack ends, its gates queue caption and hash.
    folder = project.folder / "runs" / "caption-city" / "attempts" / "0001" / "tasks"
    project.wait(lambda: len(list(folder.glob("*.json"))) >= 1, "caption at work")
    refused = project.run("pipeline", FILE, check=False)
    assert refused.returncode == 2 and "all of an earlier call still wait in the queue" in refused.stderr
    project.run("cancel", "caption-city", "--yes")
    assert not list(project.folder.glob("data/city/columns/caption/**/*.lease")), "a cancelled task holds nothing"

    project.wait(lambda: not {"queued", "running"} & project.run_status("pipeline-p")["tasks"].keys(), "the gates over")
    stopped = project.run_status("caption-city")
    assert stopped["tasks"].keys() == {"cancelled"}
    assert stopped["problems"] == []
    [problem] = project.run_status("pipeline-p")["problems"]
    assert "all was not started: caption is not complete (" in problem["reason"]
    assert "hash" not in problem["reason"]
    log = project.run("logs", "pipeline-p", check=False)
    assert log.returncode == 1 and "all was not started" in log.stdout.splitlines()[0]

    before = receipts(project, "hash")
    assert len(before) == 3
    project.run("retry", "caption-city", "--wait")
    project.run("retry", "pipeline-p", "--wait")
    assert {state for state, _ in plan(project, *SLOW).values()} == {"complete"}
    assert receipts(project, "hash") == before, "nothing was computed twice"


def test_what_changed_is_made_again_and_the_plan_says_why(project: Project) -> None:
    assert "nothing to do" in project.run("pipeline", FILE).stdout
    changed = ("--set", "caption.args.batch=4")
    assert plan(project, *changed)["caption"] == ("ready", "execution batch 2 → 4")
    assert plan(project, *changed)["all"] == ("waits", "after caption")
    assert plan(project, *changed, "--phases", "hash") == {
        "pack": ("complete", ""),
        "caption": ("left out", "not chosen"),
        "hash": ("complete", ""),
        "all": ("left out", "not chosen"),
    }
    refused = project.run("pipeline", FILE, *changed, "--phases", "all", check=False)
    assert refused.returncode == 2
    assert "all needs caption, which is not complete (execution batch 2 → 4)" in refused.stderr
    shard = next(iter(receipts(project, "hash")))
    Path(shard).unlink()
    assert plan(project)["hash"] == ("ready", "missing shards: 1 of 3")
