"""A picture that crashes the decoder: the job that packs it comes back by itself, and rejects that one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faulty_stage import copy_package
from PIL import Image
from project import Project, make_project

from semiocity.launch import ends

pytestmark = pytest.mark.slurm

RECIPE = 'name = "photos"\nshard_rows = 4\n[source]\nkind = "folder"\nroot = "{root}"\n'
CRASH = """
    if data.endswith(b"deadly"):
        import os

        os.kill(os.getpid(), 11)
"""


@pytest.fixture
def project(tmp_path: Path, cluster: Any) -> Project:
    """Ten pictures, the seventh of which a broken decoder (ours, for this test) dies of."""
    code = copy_package(tmp_path / "package")
    decoder = code / "semiocity" / "data" / "images.py"
    text, before = decoder.read_text(), "    image = _open(data, formats"
    assert before in text
    decoder.write_text(text.replace(before, CRASH.lstrip("\n") + before, 1))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(10):
        Image.new("RGB", (40, 30), (20 * number, 80, 120)).save(pictures / f"{number}.jpg")
    with (pictures / "6.jpg").open("ab") as file:
        file.write(b"deadly")
    made = make_project(
        tmp_path / "project",
        'executor = "slurm"\npartition = "main"\n',
        {**cluster.environment, "PYTHONPATH": str(code)},
    )
    (made.folder / "shards" / "photos.toml").write_text(RECIPE.format(root=pictures))
    return made


def test_one_poisoned_picture_costs_one_row(project: Project) -> None:
    project.run("pack", "shards/photos.toml", "--wait")
    status = project.run_status("pack-photos")
    assert set(status["tasks"]) == {"done"} and status["restarts"] == 1
    manifest = json.loads((project.folder / "data/photos/manifest.json").read_text())
    assert (manifest["rows"], manifest["rejected"]) == (9, {"kills_process": 1})
    found = [ends.read(path) for path in (project.folder / "runs/pack-photos").glob("attempts/*/ends/*")]
    assert [(note["cause"], note["budget"]) for note in found] == [("crash", "crash")]
    assert project.run("verify", "data/photos").returncode == 0
