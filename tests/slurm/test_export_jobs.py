"""An export as an array on a real SLURM: the bytes of one process, and only what is missing the second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from project import make_project

pytestmark = pytest.mark.slurm

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=40", "--set", "source.val=8", "--set", "shard_rows=8"]


def files(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(".export/")}


def test_an_export_as_an_array(cluster: Any, tmp_path: Path) -> None:
    made = make_project(tmp_path, 'executor = "slurm"\npartition = "main"\n', cluster.environment)
    (tmp_path / "local.toml").write_text('executor = "local"\n')
    made.run("pack", "shards/city.toml", *SETS, "--cluster", "local.toml")
    made.run("export", "data/city", "--to", "coco", "--out", "whole")
    command = ["export", "data/city", "--to", "coco", "--out", "out", "--array", "--set", "resources.shards_per_task=2"]
    made.run(*command, "--wait")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    (run,) = (run for run in made.status()["runs"] if run["kind"] == "export")
    assert set(run["tasks"]) == {"done"} and run["executor"] == "slurm"
    attempts = tmp_path / "runs" / run["run"] / "attempts"
    assert json.loads((attempts / "0001" / "attempt.json").read_text())["tasks"] == [[0, 1], [2, 3], [4, 5]]

    lost = next((tmp_path / "out" / "images" / "train").glob("00000003/*"))
    lost.unlink()
    made.run(*command, "--wait")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert json.loads((attempts / "0002" / "attempt.json").read_text())["tasks"] == [[3]]
    assert "nothing to do" in made.run(*command, "--wait").stdout
