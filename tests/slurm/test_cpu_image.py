"""The small image: what containers/README.md says runs in it does, and gives the bytes that this environment gives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from project import SOURCE, make_project

pytestmark = [pytest.mark.slurm, pytest.mark.apptainer]

SETS = ["--set", "source.size=[64, 64]", "--set", "source.train=24", "--set", "source.val=8", "--set", "shard_rows=16"]
JOBS = [
    ("pack", "shards/city.toml", *SETS),
    ("caption", "jobs/caption.toml"),
    ("segment", "jobs/segment.toml"),
    ("hash", "jobs/hash.toml"),
    ("duplicates", "jobs/duplicates.toml", "--set", "resources.mem_gb=1"),
]


def test_stages_without_a_network_run_in_the_small_image(cluster: Any, cpu_image: Path, tmp_path: Path) -> None:
    assert cpu_image.stat().st_size < 400e6, "it is there to be small"
    site = f'executor = "slurm"\npartition = "main"\n[container]\nimage = "{cpu_image}"\n'
    inside = make_project(tmp_path / "inside", site, cluster.environment)
    here = make_project(tmp_path / "here", 'executor = "local"\n', {})
    for job in JOBS:
        inside.run(*job, "--wait")
    for job in JOBS[:3]:
        here.run(*job)
    assert {column["column"] for column in inside.status()["datasets"][0]["columns"]} == {
        "base", "caption", "mask", "hash", "duplicates"
    }  # fmt: skip
    for column in ("base", "caption", "mask"):
        folders = [project.folder / "data/city/columns" / column for project in (inside, here)]
        assert digests(folders[0]) == digests(folders[1]) != {}, column
    assert inside.run("verify", "data/city").returncode == 0
    assert (
        inside.run("image", str(cpu_image), "--check", "--folder", str(SOURCE / "containers"), check=False).returncode
        == 0
    )


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
