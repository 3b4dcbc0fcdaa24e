"""`--dry-run`, held against golden files: every sbatch file that would be submitted, and how much that asks for.
`SEMIOCITY_GOLDEN=write pytest …` writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Cluster, Resources
from semiocity.launch import estimate, submission
from semiocity.launch.jobs import Work

GOLDEN = Path(__file__).parents[1] / "golden"
GPU = Resources(gpus_per_node=1, cpus_per_rank=8, mem_gb=64, timeout_min=240, array_parallelism=4)
CASES: dict[str, dict[str, Any]] = {
    "stage-split": {"kind": "stage", "column": "caption", "revision": "r", "shards": 21, "resources": GPU},
    "view": {
        "kind": "view",
        "column": "night",
        "revision": "r",
        "shards": 2500,
        "together": 1000,
        "resources": Resources(shards_per_task=1000),
    },
    "generate": {"kind": "generate", "units": 2, "resources": GPU},
}


@pytest.mark.parametrize("name", CASES)
def test_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(run=tmp_path / "runs" / name, dataset=tmp_path / "data" / "city", job={}, **CASES[name])
    cluster = Cluster(executor="slurm", partition="gpu", max_array=3, shared_group="city")
    assert submission.submit(work, cluster, dry_run=True) is False
    assert not list(tmp_path.iterdir()), "nothing is written"
    text = capsys.readouterr().out.replace(str(tmp_path), "/project")
    text = re.sub(r"\S+/python3?(\.\d+)? -u", "PYTHON -u", text)
    path = GOLDEN / f"dry-run-{name}.txt"
    if os.environ.get("SEMIOCITY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_summary_says_what_is_asked_and_what_is_likely() -> None:
    work = Work(run=Path("/r"), dataset=Path("/d"), job={}, **CASES["stage-split"])
    tasks = [[0, 1], [2]]
    assert estimate.summary(work, tasks, None) == "# 2 tasks, 3 shards, at most 8.0 GPU-hours by the time limit"
    assert estimate.summary(work, tasks, 600).splitlines()[1].startswith("# about 0.50 GPU-hours by what was measured")
    training = Work("train", Path("/r"), Path("/d"), {}, Resources(nodes=4, gpus_per_node=8, ranks_per_node=8))
    assert estimate.summary(training, [[]], None) == "# 1 task, at most 32.0 GPU-hours by the time limit"
    cores = Work("stage", Path("/r"), Path("/d"), {}, Resources(cpus_per_rank=2), shards=1)
    assert estimate.summary(cores, [[0]], None) == "# 1 task, 1 shard, at most 2.0 core-hours by the time limit"
