"""`semiocity duplicates` from job file to a merged column, a report and a status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stage_data import run_stage, street_rows, write_base

from semiocity.cli import main
from semiocity.config import Cluster, ReduceJob, StageJob, load_toml
from semiocity.data.manifest import ShardPath, column_folder, merge
from semiocity.launch import jobs, submission
from semiocity.stages.base import make_stage
from semiocity.stages.reduce import make_reduce

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """9 rows in 3 shards, where jobs/ and data/ are expected."""
    rows = street_rows(9, size=32)
    keys = sorted(rows)
    rows[keys[7]] = rows[keys[0]]
    write_base(tmp_path / "data" / "city", rows, 3, (), splits={keys[7]: "val"})
    (tmp_path / "jobs").mkdir()
    for name in ("hash", "duplicates"):
        shutil.copyfile(JOBS / f"{name}.toml", tmp_path / "jobs" / f"{name}.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_hashes(dataset: Path) -> None:
    merge(dataset, "hash", run_stage(make_stage("hash", {"hasher": "dct"}), dataset).name)


def test_job_files_that_come_with_the_project_are_valid() -> None:
    hashing, duplicates = load_toml(JOBS / "hash.toml", StageJob), load_toml(JOBS / "duplicates.toml", ReduceJob)
    assert make_stage(hashing.stage, hashing.args).column == "hash"
    made = make_reduce(duplicates.reduce, duplicates.args)
    assert made.args == make_reduce("duplicates", {}).args, "the file spells out the defaults"


def test_from_job_files_to_column_report_and_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_hashes(project / "data" / "city")
    assert main(["duplicates", "jobs/duplicates.toml"]) == 0
    capsys.readouterr()
    facts = json.loads((project / "runs/duplicates-city/duplicates.json").read_text())
    assert facts["moved"] == [{"from": "train", "to": "val", "rows": 1}]
    assert (project / "runs/duplicates-city/duplicates.html").stat().st_size > 1000
    assert main(["duplicates", "jobs/duplicates.toml"]) == 0
    assert "duplicates of city: complete, nothing to do" in capsys.readouterr().out
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "run duplicates-city (reduce of city, attempt 1): 2 done" in shown
    assert "duplicates   " in shown and "3/3 shards  complete" in shown
    assert main(["duplicates", "data/city", "--check"]) == 0
    assert main(["duplicates", "data/city", "--check", "--split", "base.split", "--json"]) == 1

    # A damaged shard: its receipt is removed, and one task makes it and only it.
    work = jobs.reduce(Path("jobs/duplicates.toml"), ())
    ShardPath(column_folder(work.dataset, "duplicates", work.revision), 1).receipt.unlink()
    assert not submission.complete(work)
    assert submission.plan_tasks(work, Cluster(), {}) == [[1]]
    assert submission.plan_tasks(work, Cluster(), {"7": [1]}) == [], "somebody is at it"


def test_one_task_whatever_the_number_of_shards(project: Path) -> None:
    add_hashes(project / "data" / "city")
    work = jobs.reduce(Path("jobs/duplicates.toml"), ["resources.shards_per_task=1"], expect="duplicates")
    assert (work.kind, work.column, work.shards) == ("reduce", "duplicates", 3)
    assert submission.plan_tasks(work, Cluster(), {}) == [[0, 1, 2]]
    assert submission.plan_tasks(work, Cluster(executor="slurm"), {}) == [[0, 1, 2]]


def test_what_cannot_work_is_refused_before_anything_is_started(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["duplicates", "jobs/duplicates.toml"]) == 2
    assert "hash.pixels_sha256 is needed, but there is no column hash" in capsys.readouterr().err
    (project / "jobs/other.toml").write_text('dataset = "data/city"\nreduce = "corpus"\n')
    assert main(["duplicates", "jobs/other.toml"]) == 2
    assert "run it with `semiocity corpus jobs/other.toml`" in capsys.readouterr().err
    assert not (project / "runs").exists()
