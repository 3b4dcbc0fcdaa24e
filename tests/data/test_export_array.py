"""An export as an array job: the same bytes as in one process; what is there is not made again; nothing is mixed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from exported import state
from make_images import add_column

from semiocity.cli import main
from semiocity.config import Cluster
from semiocity.data.export import engine, parts
from semiocity.data.export.engine import FORMATS, export
from semiocity.data.export.selection import Rows
from semiocity.data.export.wish import Wish
from semiocity.data.lease import Owner, lease
from semiocity.errors import UserError
from semiocity.launch import exporting, submission

OWNER = Owner.here("test")


@pytest.fixture
def project(own_city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    shutil.move(own_city, tmp_path / "data" / "town")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wish(project: Path, to: str = "parquet", **more: Any) -> Wish:
    fields = ("base.image", "caption.text")
    return Wish(str(project / "data/town"), to, str(project / "out"), **{"fields": fields, **more})


@pytest.mark.parametrize("to", FORMATS)
def test_tasks_in_any_order_give_what_one_process_gives(project: Path, to: str) -> None:
    wanted = wish(project, to)
    export(project / "data/town", to, project / "whole", wanted.fields)
    work = exporting.work(wanted, Path("none.toml"))
    assert work.shards == 4 and not submission.complete(work)
    for shard in (2, 0, 3, 1):
        handed = Wish.from_json(work.job["export"])
        assert engine.task(handed, work.job["inputs"], [shard], OWNER)
    engine.finish(wanted, work.job["inputs"])
    assert submission.complete(work)
    assert state(project / "out") == state(project / "whole")


def test_the_command_goes_on_where_it_broke(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "data/town", "--to", "parquet", "--out", "out", "--split", "train", "--array"]
    assert main([*command, "--dry-run"]) == 0
    assert not (project / "out").exists() and "#SBATCH" in capsys.readouterr().out
    assert main(command) == 0
    whole = state(project / "out")
    assert len([name for name in whole if name.endswith(".parquet")]) == 4
    assert main(command) == 0
    assert "complete, nothing to do" in capsys.readouterr().out

    inodes = {path.name: path.stat().st_ino for path in (project / "out/data").iterdir()}
    (project / "out/data/train-00002-of-00004.parquet").unlink()
    (project / "out/semiocity.json").unlink()
    assert main(command) == 0
    assert state(project / "out") == whole
    after = {path.name: path.stat().st_ino for path in (project / "out/data").iterdir()}
    assert [name for name in after if after[name] != inodes[name]] in ([], ["train-00002-of-00004.parquet"])
    assert "1 task ->" in capsys.readouterr().out

    export(project / "data/town", "parquet", project / "out", rows=Rows(split="train"))
    assert state(project / "out") == whole, "either way may go on with the other's"


def test_only_what_is_missing_and_not_under_way_is_submitted(project: Path) -> None:
    (project / "jobs").mkdir()
    (project / "jobs/export.toml").write_text("[resources]\nshards_per_task = 2\n")
    work = exporting.work(wish(project), Path("jobs/export.toml"))
    slurm = Cluster(executor="slurm")
    assert submission.plan_tasks(work, slurm, {}) == [[0, 1], [2, 3]]
    assert engine.task(wish(project), work.job["inputs"], [1], OWNER)
    assert submission.plan_tasks(work, slurm, {"7": [2]}) == [[0, 3]]
    assert work.columns.keys() == {"base", "caption"} and work.binds == (project / "out",)


def test_a_stop_leaves_between_shards(project: Path) -> None:
    work = exporting.work(wish(project), Path("none.toml"))
    answers = iter([False, False, True])
    assert not engine.task(wish(project), work.job["inputs"], range(4), OWNER, lambda: next(answers))
    assert engine.missing(wish(project), work.job["inputs"]) == [2, 3]
    with pytest.raises(UserError, match="2 shards are not there, the first is 00000002"):
        engine.finish(wish(project), work.job["inputs"])
    assert not (project / "out/semiocity.json").exists()


def test_a_dataset_that_changed_meanwhile_is_not_mixed_in(project: Path) -> None:
    wanted = wish(project, fields=("base.image", "word.text"))
    work = exporting.work(wanted, Path("none.toml"))
    assert engine.task(wanted, work.job["inputs"], [0], OWNER)
    add_column(project / "data/town", failing=(), revision="bbbbbbbbbb")
    with pytest.raises(UserError, match="changed since the export was submitted"):
        engine.task(wanted, work.job["inputs"], [1], OWNER)
    with pytest.raises(UserError, match="changed since the export was submitted"):
        engine.finish(wanted, work.job["inputs"])
    later = exporting.work(wanted, Path("none.toml"))
    assert later.revision != work.revision
    assert engine.task(wanted, later.job["inputs"], range(4), OWNER)
    engine.finish(wanted, later.job["inputs"])
    export(project / "data/town", "parquet", project / "whole", wanted.fields)
    assert state(project / "out") == state(project / "whole")


def test_two_never_write_one_shard(project: Path) -> None:
    work = exporting.work(wish(project), Path("none.toml"))
    exporter = wish(project).exporter()
    held_by_another = project / "out/.export/parts/00000/00000001.lease"
    held_by_another.parent.mkdir(parents=True)
    seen: list[dict[str, Any]] = []
    with lease(held_by_another, Owner("another", 0, 0, "elsewhere", 1)) as held:
        assert held
        assert engine.task(wish(project), work.job["inputs"], range(4), OWNER, report=seen.append)
        with pytest.raises(UserError, match="1 shards are not there"):
            export(project / "data/town", "parquet", project / "out", wish(project).fields)
    assert {"leased": 1} in seen and engine.missing(wish(project), work.job["inputs"]) == [1]
    left = project / "out/.export/work/00000001-dead"
    left.mkdir(parents=True)
    assert parts.make(exporter, project / "out", 1, OWNER)
    assert not left.exists(), "what a dead attempt left of the shard"


def test_tasks_open_no_index_but_their_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of rows are counted once, where the job is submitted: also with a filter, or rows that failed."""
    wanted = wish(project, rows=Rows(filter="width > 0"), fields=("base.image", "word.text"))
    work = exporting.work(wanted, Path("none.toml"))
    from semiocity.data import columns

    opened: list[int] = []
    choose = columns.choose

    def noted(dataset: Any, selection: Any, shard: int) -> Any:
        opened.append(shard)
        return choose(dataset, selection, shard)

    monkeypatch.setattr(columns, "choose", noted)
    assert engine.task(wanted, work.job["inputs"], [2], OWNER)
    assert set(opened) == {2}


def test_what_goes_with_an_array_only(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "data/town", "--to", "parquet", "--out", "out"]
    for more, words in (
        (["--wait"], "go with --array"),
        (["--array", "--json"], "no effect with --array"),
        (["--array", "--workers", "2"], "no effect with --array"),
        (["--array", "--set", "resources.gpus=1"], "resources.gpus"),
        (["--array", "--split", "nosuch"], "no split nosuch"),
    ):
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err
    assert not (project / "out").exists() and not (project / "runs").exists()
