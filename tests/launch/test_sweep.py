"""Sweeps: every combination is a run of its own, all are checked first, and what is complete is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semiocity.cli import main
from semiocity.config import Cluster
from semiocity.data.lease import Owner
from semiocity.data.manifest import merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.errors import UserError
from semiocity.files import digest, write_json
from semiocity.launch import submission, sweep
from semiocity.launch.jobs import Work
from semiocity.launch.runs import find_runs, new_attempt
from semiocity.train.options import TrainJob, identity

JOB = """
task = "sdm"
dataset = "data/city"
run = "trial"
steps = 2
global_batch = 4
[data]
size = 16
[model]
mult = [1]
attention_resolutions = []
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "city"
    source = {"kind": "city", "train": 6, "val": 2, "size": [32, 32]}
    plan = make_plan(Recipe.model_validate({"name": "city", "source": source, "shard_rows": 8}), folder)
    assert pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: False, report=lambda facts: None)
    merge(folder, "base", plan.revision)
    return folder


@pytest.fixture
def job(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "city").symlink_to(packed)
    (tmp_path / "job.toml").write_text(JOB)
    return Path("job.toml")


def test_values_are_read_as_toml() -> None:
    assert sweep.axis("optimizer.lr=1e-4, 3e-4") == sweep.Axis("optimizer.lr", (1e-4, 3e-4))
    assert sweep.axis("model.mult=[1,2],[1,1]").values == ([1, 2], [1, 1])
    assert sweep.axis("optimizer.schedule=constant,cosine").values == ("constant", "cosine")
    assert sweep.axis("data.flip=true,false").values == (True, False)
    assert sweep.axis('data.view="a,b","c"').values == ("a,b", "c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed", "expected KEY=VALUE"),
        ("seed=", "expected KEY=VALUE"),
        ("=1,2", "expected KEY=VALUE"),
        ("seed=1,1", "1 is there twice"),
        ("run=a,b", "run cannot be swept"),
    ],
)
def test_wrong_axes_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sweep.axis(text)


def test_every_combination_is_a_run_named_after_its_settings(job: Path) -> None:
    works = sweep.plan(job, [], ["optimizer.lr=1e-4,3e-4", "seed=0,1"])
    assert [work.run.name for work in works] == [
        "trial--lr-0.0001--seed-0",
        "trial--lr-0.0001--seed-1",
        "trial--lr-0.0003--seed-0",
        "trial--lr-0.0003--seed-1",
    ]
    assert [(work.job["optimizer"]["lr"], work.job["seed"]) for work in works] == [
        (1e-4, 0),
        (1e-4, 1),
        (3e-4, 0),
        (3e-4, 1),
    ]


def test_names_stay_apart() -> None:
    assert sweep.name_of("p", [("optimizer.eps", 1e-8), ("model.eps", 2)]) == "p--optimizer-eps-1e-08--model-eps-2"
    assert sweep.name_of("p", [("model.mult", [1, 2])]) == "p--mult-1-2"
    assert sweep.name_of("p", [("x", -3)]) == "p--x-minus3"


def test_one_wrong_combination_refuses_all(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(job), "--sweep", "data.size=16,0", "--sweep", "seed=0,1"]) == 2
    said = capsys.readouterr().err
    assert "2 of 4 combinations are wrong; none was queued" in said
    assert "data.size=0, seed=1" in said and "must be at least 1 pixel" in said
    assert not Path("runs").exists()


def test_a_misspelt_key_is_refused(job: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lrr: unknown key; did you mean lr"):
        sweep.plan(job, [], ["optimizer.lrr=1,2"])
    with pytest.raises(UserError, match="seed is there twice; write all its values in one"):
        sweep.plan(job, [], ["seed=1", "seed=2"])


def test_dry_run_lists_the_runs_and_queues_nothing(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(job), "--sweep", "seed=0,1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "sweep trial: 2 runs" in said and "trial--seed-1" in said and "#SBATCH" in said
    assert not Path("runs").exists()


def _finish(work: Work) -> None:
    job = TrainJob.model_validate(work.job)
    write_json(work.run / "done.json", {"step": job.steps, "settings": digest(identity(job))})


def test_complete_runs_are_skipped_and_a_failure_does_not_stop_the_others(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The local executor, with trainings that take no time: what runs, and in what order."""
    begun: list[str] = []

    def run_local(launch: Any, attempt: Any, data: Any, parallel: int) -> None:
        begun.append(attempt.run.name)
        if "seed-1" not in attempt.run.name or "later" in begun:
            _finish(next(work for work in works if work.run == attempt.run))

    monkeypatch.setattr(submission, "run_local", run_local)
    works = sweep.plan(job, [], ["seed=0,1,2"])
    works[0].run.mkdir(parents=True)
    _finish(works[0])
    assert main(["train", str(job), "--sweep", "seed=0,1,2"]) == 1
    assert begun == ["trial--seed-1", "trial--seed-2"]
    said = capsys.readouterr()
    assert "trial--seed-0" in said.out and "complete, nothing to do" in said.out
    assert "1 of 3 runs are not complete" in said.err and "trial--seed-1" in said.err
    begun[:] = ["later"]
    assert main(["train", str(job), "--sweep", "seed=0,1,2"]) == 0
    assert begun == ["later", "trial--seed-1"]


def test_a_name_that_stands_for_other_settings_is_refused_before_anything_runs(job: Path) -> None:
    works = sweep.plan(job, [], ["seed=0,1"])
    attempt = new_attempt(works[1].run)
    other = {**works[1].job, "global_batch": 8}
    attempt.write({"kind": "train", "column": "", "revision": "", "executor": "slurm", "jobs": [], "job": other})
    (works[1].run / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(UserError, match=r"(?s)trial--seed-1: .*global_batch: 8 -> 4.*none was queued") as error:
        sweep._check(works, Cluster())
    assert "\n" in str(error.value)


def test_status_takes_the_prefix(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for work in sweep.plan(job, [], ["seed=0,1"]):
        new_attempt(work.run).write(
            {"kind": "train", "dataset": "data/city", "column": "", "executor": "local", "host": "x"}
            | {"tasks": [[]], "merge": None, "jobs": [""], "job": work.job}
        )
    new_attempt(Path("runs/trial-2").resolve()).write({"kind": "train", "jobs": []})
    assert [run.name for run in find_runs("trial")] == ["trial--seed-0", "trial--seed-1"]
    assert main(["status", "trial", "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["trial--seed-0", "trial--seed-1"]
