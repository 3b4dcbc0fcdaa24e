"""The whole chain as a pipeline on a real SLURM: packed, captioned, segmented, trained, painted, scored, a page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from project import Project, make_project

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1800)]

SMALL = {
    "shards/city.toml": {"train = .*": "train = 48", "val = .*": "val = 6", "size = .*": "size = [32, 32]"},
    "jobs/demo-train.toml": {
        "^steps = .*": "steps = 6",
        "checkpoint_every = .*": "checkpoint_every = 3",
        "sample_every = .*": "sample_every = 6",
        "warmup_steps = .*": "warmup_steps = 2",
        "^size = .*": "size = 32",
        "channels = .*": "channels = 8",
    },
    "jobs/generate.toml": {"^steps = .*": "steps = 2", "images_per_layout = .*": "images_per_layout = 2"},
    "jobs/evaluate.toml": {"^steps = .*": "steps = 5"},
}
FILE = "jobs/pipelines/city.toml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Project:
    folder = tmp_path_factory.mktemp("chain") / "p"
    made = make_project(folder, 'executor = "slurm"\npartition = "main"\n', cluster.environment)
    for name, changes in SMALL.items():
        text = (folder / name).read_text()
        for pattern, line in changes.items():
            text = re.sub(pattern, line, text, flags=re.MULTILINE)
        (folder / name).write_text(text)
    return made


def plan(project: Project, *options: str) -> dict[str, tuple[str, str]]:
    done = project.run("pipeline", FILE, "--json", *options)
    return {item["step"]: (item["state"], item["why"]) for item in json.loads(done.stdout)}


def test_one_command_leads_from_a_recipe_to_a_page(project: Project) -> None:
    steps = ["pack", "caption", "segment", "train", "generate", "evaluate", "report"]
    assert list(plan(project)) == steps
    project.run("pipeline", FILE, "--wait")
    assert {state for state, _ in plan(project).values()} == {"complete"}
    run = project.folder / "runs" / "demo"
    scores = json.loads((run / "scores.json").read_text())
    assert 0 < scores["miou"]["ceiling"] <= 1 and scores["frechet"]["noise"] > 0
    assert "<html" in (run / "report.html").read_text()
    assert len(list((run / "samples").glob("*/*.png"))) == 6 * 2
    assert project.run("status").returncode == 0
    assert "nothing to do" in project.run("pipeline", FILE).stdout


def test_more_pictures_a_layout_make_pictures_scores_and_page_anew_but_no_training(project: Project) -> None:
    more = ("--set", "generate.images_per_layout=3")
    found = plan(project, *more)
    assert {step: state for step, (state, _) in found.items()} == {
        **dict.fromkeys(("pack", "caption", "segment", "train"), "complete"),
        "generate": "ready",
        **dict.fromkeys(("evaluate", "report"), "waits"),
    }
    before = (project.folder / "runs/demo/done.json").stat().st_mtime_ns
    project.run("pipeline", FILE, *more, "--wait")
    assert {state for state, _ in plan(project, *more).values()} == {"complete"}
    assert (project.folder / "runs/demo/done.json").stat().st_mtime_ns == before
    assert len(list((project.folder / "runs/demo/samples").glob("*/*.png"))) == 6 * 3
