"""Pipelines on a real SLURM: what is refused before anything is queued, few places in the queue, and a run folder that
suffices without the files that it was queued from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

pytestmark = pytest.mark.slurm

FILE = "jobs/pipelines/p.toml"
PIPELINE = """
dataset = "data/city"

[gate]
partition = "main"

[steps.pack]
pack = "shards/city.toml"
[steps.pack.set]
"source.size" = [32, 32]
"source.train" = 40
"source.val" = 8
shard_rows = 16
"resources.shards_per_task" = 1

[steps.caption]
stage = "jobs/caption.toml"
set = { "resources.shards_per_task" = 1 }
"""
SITE = 'executor = "slurm"\npartition = "main"\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Project:
    folder = tmp_path_factory.mktemp("limits") / "p"
    made = make_project(folder, SITE, cluster.environment)
    (folder / FILE).write_text(PIPELINE)
    return made


def test_what_any_step_would_be_refused_for_is_said_before_anything_is_queued(project: Project, cluster: Any) -> None:
    before = cluster.squeue()
    refused = project.run("pipeline", FILE, "--set", 'caption.resources.partition="bad"', check=False)
    assert refused.returncode == 2
    assert "steps.caption: " in refused.stderr and "invalid partition" in refused.stderr
    bad = project.folder / "jobs/pipelines/bad-gate.toml"
    bad.write_text(PIPELINE.replace('partition = "main"', 'partition = "bad"'))
    refused = project.run("pipeline", "jobs/pipelines/bad-gate.toml", check=False)
    assert refused.returncode == 2
    assert "bad-gate.toml: gate: " in refused.stderr and "invalid partition" in refused.stderr
    (project.folder / "jobs/cluster.toml").write_text(SITE + "max_submitted = 3\n")
    refused = project.run("pipeline", FILE, check=False)
    assert refused.returncode == 2
    assert "needs 4 places in the queue at least (1 for gates)" in refused.stderr
    assert "--phases pack --wait" in refused.stderr
    assert cluster.squeue() == before
    assert not list((project.folder / "runs").glob("*")), "nothing was begun"


def test_a_pipeline_ends_by_itself_where_few_jobs_may_be_in_the_queue(project: Project) -> None:
    """Three tasks of packing, two at a time; then three of captioning."""
    (project.folder / "jobs/cluster.toml").write_text(SITE + "max_submitted = 5\n")
    said = project.run("pipeline", FILE, "--wait").stdout
    assert "pack: what found no room waits as SLURM job" in said
    assert project.run_status("pipeline-p")["tasks"] == {"done": 4}, "a second gate each"
    for run in ("pack-city", "caption-city"):
        files = sorted((project.folder / "runs" / run / "attempts").glob("*/attempt.json"))
        assert [len(json.loads(file.read_text())["tasks"]) for file in files] == [2, 1], run
    plan = json.loads(project.run("pipeline", FILE, "--json").stdout)
    assert {step["state"] for step in plan} == {"complete"}


def test_the_run_folder_of_a_pipeline_suffices(project: Project, tmp_path: Path, cluster: Any) -> None:
    there = make_project(tmp_path / "q", SITE, cluster.environment)
    copy = shutil.copytree(project.folder / "runs/pipeline-p", tmp_path / "archive/pipeline-p")
    (project.folder / FILE).unlink()
    (project.folder / "jobs/caption.toml").write_text("no TOML")
    assert "nothing to do" in project.run("retry", "pipeline-p").stdout
    assert "nothing to do" in project.run("repeat", "pipeline-p").stdout
    for folder in ("jobs/pipelines", "shards"):
        shutil.rmtree(there.folder / folder)
    for file in ("pack.toml", "caption.toml"):
        (there.folder / "jobs" / file).unlink()
    dry = there.run("repeat", str(copy), "--dry-run")
    assert "# ---- step pack" in dry.stdout and not (there.folder / "data").exists()
    there.run("repeat", str(copy), "--wait")
    assert digests(there) == digests(project)
    code = json.loads((copy / "attempts/0001/attempt.json").read_text())["code"]
    again = json.loads((there.folder / "runs/caption-city/attempts/0001/attempt.json").read_text())["code"]
    assert Path(again).name == Path(code).name, "the code that it was queued with"


def digests(project: Project) -> dict[str, str]:
    columns = json.loads((project.folder / "data/city/manifest.json").read_text())["columns"]
    return {name: column["digest"] for name, column in columns.items()}
