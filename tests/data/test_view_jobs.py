"""Views as jobs: planned, divided into tasks by the thousand, built and named by other jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from make_images import add_column, city_recipe, folder_recipe, jpeg, packed, write_files

from semiocity.cli import main
from semiocity.config import Cluster, check
from semiocity.data import views
from semiocity.data.columns import Dataset
from semiocity.data.saved import SavedView
from semiocity.data.view_build import build, merge
from semiocity.errors import UserError
from semiocity.launch import jobs, submission


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    packed(city_recipe(shard_rows=2), tmp_path / "data" / "town")
    (tmp_path / "views").mkdir()
    (tmp_path / "views" / "dusk.toml").write_text(
        'dataset = "data/town"\nfields = ["base.image", "base.label"]\nfilter = """time in ["dusk", "night"]"""\n'
    )
    (tmp_path / "train.toml").write_text(
        'dataset = "data/town"\ntask = "sdm"\nsteps = 1\nglobal_batch = 1\n[data]\nsize = 32\nview = "dusk"\n'
        "[model]\nmult = [1]\nattention_resolutions = []\nchannels = 32\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_view_is_built_and_trainings_pin_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"no view dusk; there are: none\. `semiocity view FILE` builds one"):
        jobs.train(Path("train.toml"), [])
    work = jobs.view(Path("views/dusk.toml"), [])
    assert submission.submit(work, Cluster())
    assert submission.submit(work, Cluster()) and "nothing to do" in capsys.readouterr().out
    data = Dataset.open(project / "data" / "town")
    view = data.saved_view("dusk", "train")
    assert len(view) == len(data.view(["base.image"], "train", 'time != "day"')) > 0

    pinned = jobs.train(Path("train.toml"), []).job["data"]["view"]
    assert pinned == f"dusk@{work.revision}"
    other = jobs.view(Path("views/dusk.toml"), ['filter=time == "day"'])
    assert other.revision != work.revision and not submission.complete(other)
    plan = views.plan_again(check(other.job, views.ViewJob, "job"), other.revision)
    assert build(plan, range(other.shards)) and merge(plan) and submission.complete(other)
    assert jobs.train(Path("train.toml"), []).job["data"]["view"] == f"dusk@{other.revision}"
    assert len(data.saved_view(pinned, "train")) == len(view), "a run goes on with the rows that it began with"

    for sets, message in (
        (["data.split=test"], "data.view: view dusk has no rows of split test; it has train, val"),
        (["sample_split=test"], "no rows of split test"),
        (["data.fields.label=base.instance"], "view dusk has no field base.instance"),
        (["data.view=dusky"], "no view dusky; there are: dusk"),
    ):
        with pytest.raises(UserError, match=message):
            jobs.train(Path("train.toml"), sets)


def test_a_wrong_filter_is_refused_before_anything_is_queued(project: Path) -> None:
    with pytest.raises(UserError, match=r"views/dusk\.toml: filter: no scalar tmie; did you mean time"):
        jobs.view(Path("views/dusk.toml"), ['filter=tmie == "day"'])
    assert not (project / "runs").exists()


def test_tasks_hold_whole_thousands(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "FOLDER_SHARDS", 4)
    monkeypatch.setattr(jobs.manifest, "FOLDER_SHARDS", 4)
    work = jobs.view(Path("views/dusk.toml"), ["resources.shards_per_task=5"])
    assert (work.shards, work.together) == (10, 4)
    slurm: dict[str, Any] = {"executor": "slurm"}
    assert submission.plan_tasks(work, Cluster(**slurm), {}) == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    assert submission.plan_tasks(work, Cluster(local_parallelism=2), {}) == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]
    busy = {"7_0": [4, 5, 6, 7]}
    assert submission.plan_tasks(work, Cluster(**slurm), busy) == [[0, 1, 2, 3, 8, 9]]


def test_after_a_take_down_the_command_that_is_named_makes_views_fresh(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    town = Path("data/town")
    assert main(["view", "views/dusk.toml"]) == 0
    assert main(["view", "views/dusk.toml", "--set", "name=day", "--set", 'split=""']) == 0
    (project / "views" / "dusk.toml").unlink()  # the rule is in the view too
    view = Dataset.open(town).saved_view("dusk")
    gone, rows, pinned = view.key(0), len(view), f"dusk@{view.facts['revision']}"
    assert main(["export", "data/town", "--to", "imagefolder", "--out", "before", "--view", "dusk"]) == 0
    capsys.readouterr()
    assert main(["remove", "data/town", gone, "--reason", "asked for", "--apply"]) == 0
    said = capsys.readouterr().out
    commands = re.findall(r"`semiocity (view [^`]+)`", said)
    assert commands == ["view data/town/views/day", "view data/town/views/dusk"]

    with pytest.raises(UserError, match=r"rows taken down.*`semiocity view data/town/views/dusk` builds it again"):
        jobs.train(Path("train.toml"), [])  # before anything is queued
    assert main(["export", "data/town", "--to", "imagefolder", "--out", "after", "--view", "dusk"]) == 2
    for command in commands:
        assert main(command.split()) == 0
    fresh = Dataset.open(town).saved_view("dusk")
    assert len(fresh) == rows - 1 and gone not in [fresh.key(i) for i in range(len(fresh))]
    assert {n: fresh.facts[n] for n in ("fields", "split", "filter", "columns")} == {
        n: view.facts[n] for n in ("fields", "split", "filter", "columns")
    }
    assert Dataset.open(town).saved_view("day").facts["split"] is None
    assert views.stale_views(town) == []
    jobs.train(Path("train.toml"), [])
    with pytest.raises(UserError, match=r"former build, [0-9a-f]{10}; .* begin another run"):
        Dataset.open(town).saved_view(pinned)


def test_a_view_is_built_again_over_the_rows_that_it_had(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows were added and a column whose revision hangs on all rows, as duplicates does, went on to another one."""
    root = write_files(project / "in", {f"{number}.jpg": jpeg(seed=number) for number in range(8)})
    out = Path("data/pictures")
    packed(folder_recipe(root), out)
    add_column(out, revision="aaaaaaaaaa")
    (project / "views" / "word.toml").write_text('dataset = "data/pictures"\nfields = ["base.image", "word.text"]\n')

    def built(path: str) -> SavedView:
        work = jobs.view(Path(path), [])
        plan = views.plan_again(check(work.job, views.ViewJob, "job"), work.revision)
        assert build(plan, range(plan.shards)) and merge(plan)
        return Dataset.open(out).saved_view("word")

    before = built("views/word.toml")
    queued = jobs.view(Path("views/word.toml"), [])
    rows = [before.key(i) for i in range(len(before))]
    write_files(root, {f"{number}.jpg": jpeg(seed=number) for number in range(20, 24)})
    packed(folder_recipe(root), out)
    assert views.plan_again(check(queued.job, views.ViewJob, "job"), queued.revision).shards == 2, "queued before"
    with pytest.raises(UserError, match=r"word lacks 1 of 3 shards.*a reduce, such as duplicates, makes its col"):
        jobs.view(Path("views/word.toml"), [])
    assert jobs.view(Path("data/pictures/views/word"), []).revision == before.facts["revision"], "nothing to do"
    add_column(out, revision="bbbbbbbbbb")
    assert main(["remove", str(out), rows[0], "--reason", "asked for", "--apply"]) == 0
    command = re.search(r"`semiocity view ([^`]+)`", capsys.readouterr().out)
    assert command is not None
    after = built(command[1])
    assert [after.key(i) for i in range(len(after))] == rows[1:]
    assert (after.facts["columns"]["word"], after.facts["shards"]) == ("aaaaaaaaaa", 2)
    assert after.facts["of_rows"] == 8 and views.stale_views(out) == []
    assert len(built("views/word.toml")) == 11, "its file takes all rows, and the column that is current"
    with pytest.raises(UserError, match=r"shards: .* has 3, fewer than 9"):
        jobs.view(Path("views/word.toml"), ["shards=9"])


def test_a_folder_that_is_no_view_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match="neither a view's file nor the folder of one that was built"):
        jobs.view(Path("data/town"), [])
