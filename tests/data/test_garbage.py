"""du and gc: what takes room, what nothing refers to; nothing that is used, named, young or worked on ever goes."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from make_images import add_column, city_recipe, packed, tree

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.manifest import merge
from semiocity.data.verify import verify
from semiocity.files import read_json, write_json
from semiocity.launch.garbage import collect
from semiocity.launch.runs import new_attempt
from semiocity.ui.browse.library import Library

DAYS_S = 3 * 86_400


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base in two revisions, word in two revisions of the newer base; the newer ones are current."""
    folder = tmp_path_factory.mktemp("data") / "town"
    packed(city_recipe(source={"seed": 5}), folder)
    packed(city_recipe(), folder)
    add_column(folder, revision="0" * 10)
    add_column(folder, revision="1" * 10)
    return folder


@pytest.fixture
def place(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a copy of the dataset, three days later."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(town, tmp_path / "data" / "town")
    (tmp_path / "runs").mkdir()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + DAYS_S)  # change times cannot be set
    return tmp_path


def going(place: Path, **more: Any) -> set[str]:
    """Paths in the dataset that would go."""
    return {
        os.path.relpath(item.path, place / "data/town") for item in collect(place / "data/town", place / "runs", **more)
    }


def bases(place: Path) -> tuple[str, str]:
    """The current revision of base, and the other."""
    now = Dataset.open(place / "data/town").column("base").revision
    return now, next(p.name for p in (place / "data/town/columns/base").glob("*/") if p.name != now)


def attempt(place: Path, run: str, **data: Any) -> None:
    made = new_attempt(place / "runs" / run)
    facts = {"kind": "stage", "dataset": str(place / "data/town"), "column": "", "revision": ""}
    made.write({**facts, "job": {}, "executor": "local", "host": os.uname().nodename, "tasks": [], "jobs": [], **data})


def test_what_nothing_refers_to_goes(place: Path) -> None:
    dataset = place / "data/town"
    _, other = bases(place)
    expected = {f"columns/base/{other}", "columns/word/" + "0" * 10, f"plans/{other}"}
    before = tree(dataset)
    assert going(place) == expected
    assert tree(dataset) == before, "nothing goes without apply"
    assert going(place, apply=True) == expected
    after = tree(dataset)
    assert after == {n: d for n, d in before.items() if not any(n.startswith(f"{gone}/") for gone in expected)}
    assert verify(dataset) == [] and going(place) == set()
    assert not list(dataset.rglob(".gone*"))


def test_what_a_view_names_stays_with_what_it_was_made_from(place: Path) -> None:
    dataset = place / "data/town"
    now, other = bases(place)
    view = {"columns": {"word": "0" * 10, "base": now}}
    write_json(dataset / "views" / "mine" / "view.json", view | {"revision": "abc"})
    assert going(place) == {f"columns/base/{other}", f"plans/{other}"}
    (dataset / "views" / "mine" / "view.json").unlink()
    write_json(dataset / "views" / "mine" / "abc" / "view.json", {"columns": {"base": other}})
    attempt(place, "train", kind="train", columns={}, job={"data": {"view": "mine@abc"}})
    assert going(place) == {"columns/word/" + "0" * 10}


def test_an_earlier_state_of_a_view_goes_and_the_columns_it_alone_named_go_after_it(place: Path) -> None:
    dataset = place / "data/town"
    now, other = bases(place)
    write_json(dataset / "views" / "mine" / "view.json", {"columns": {"base": now}, "revision": "new"})
    for revision, base in (("old", other), ("new", now)):
        write_json(dataset / "views" / "mine" / revision / "view.json", {"columns": {"base": base}})
    assert going(place, apply=True) == {"views/mine/old", "columns/word/" + "0" * 10}
    assert going(place) == {f"columns/base/{other}", f"plans/{other}"}


def test_what_the_newest_attempt_of_a_run_names_stays(place: Path) -> None:
    attempt(place, "caption-town", column="word", revision="0" * 10)
    assert "columns/word/" + "0" * 10 not in going(place)
    attempt(place, "caption-town", column="word", revision="1" * 10)
    assert "columns/word/" + "0" * 10 in going(place), "the run has gone on to other arguments"
    attempt(place, "elsewhere", column="word", revision="0" * 10, dataset="/data/another")
    assert "columns/word/" + "0" * 10 in going(place)


def test_an_older_attempt_that_may_still_run_stays(place: Path) -> None:
    attempt(place, "caption-town", column="word", revision="0" * 10, host="another", jobs=["1"])
    attempt(place, "caption-town", column="word", revision="1" * 10)
    assert "columns/word/" + "0" * 10 not in going(place)


def test_what_a_training_reads_stays(place: Path) -> None:
    _, other = bases(place)
    attempt(place, "train", kind="train", columns={"base": other})
    assert going(place) == {"columns/word/" + "0" * 10}


def test_a_training_that_does_not_say_what_it_reads_keeps_what_was_there(place: Path) -> None:
    attempt(place, "old", kind="train")
    assert going(place) == set()


def test_the_parents_of_what_stays_stay(place: Path) -> None:
    """A column of the older base, which is current but out of date."""
    dataset = place / "data/town"
    _, other = bases(place)
    for pointer, revision in (("base", other), ("word", "1" * 10)):
        write_json(dataset / "columns" / pointer / "current.json", {"format": 2, "revision": revision})
    merge(dataset, "base", other)
    assert set(Dataset.open(dataset).columns) == {"base"}
    assert going(place) == {"columns/word/" + "0" * 10}


def test_young_and_leased_things_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert going(place, grace_s=DAYS_S + 600) == set()
    other = bases(place)[1]
    lease = place / "data/town/columns/base" / other / "00000" / "00000001.lease"
    lease.write_text("{}")
    later = time.time
    monkeypatch.setattr(time, "time", lambda: later() - DAYS_S)  # the lease was touched this minute
    assert f"columns/base/{other}" not in going(place, grace_s=-1.0)


def test_leftovers_go_wherever_they_are(place: Path) -> None:
    dataset = place / "data/town"
    going(place, apply=True)
    before = tree(dataset)
    folder = Dataset.open(dataset).column("base").folder
    dead = [
        dataset / ".manifest.json.abc.tmp",
        dataset / "plans" / ".making.abc" / "01.bucket",
        dataset / "columns" / "word" / ".gone.0000000000.abc" / "00000" / "00000000.tar",
        folder / ".receipts.00000.abc.json.def.tmp",
        folder / "receipts.00000.0123456789.json",
        folder / "00000" / ".00000001.tar.abc.tmp",
        folder / "00000" / "00000001.lease",
    ]
    for path in dead:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert len(going(place)) == len(dead)
    going(place, apply=True)
    assert tree(dataset) == before


def test_a_deletion_that_was_cut_off_is_finished(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = place / "data/town"

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        collect(dataset, place / "runs", apply=True)
    assert len(list(dataset.glob("columns/*/.gone.*"))) == 1
    assert verify(dataset) == []
    assert main(["status"]) == 0
    going(place, apply=True)
    assert not list(dataset.rglob(".gone*"))


def test_the_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["what"] for item in found} == {"revision", "plan"}
    assert main(["du", "data/town", "--json"]) == 0
    used = json.loads(capsys.readouterr().out)
    columns = {(u["name"], u["revision"]): u["current"] for u in used if u["kind"] == "column"}
    now, other = bases(place)
    assert columns == {
        ("base", now): True,
        ("base", other): False,
        ("word", "0" * 10): False,
        ("word", "1" * 10): True,
    }
    files = [path for path in (place / "data/town").rglob("*") if path.is_file()]
    assert sum(u["bytes"] for u in used) == sum(path.stat().st_size for path in files)
    gone = next(item for item in found if item["path"].endswith("0" * 10))
    assert (gone["bytes"], gone["inodes"]) == next(
        (u["bytes"], u["inodes"]) for u in used if (u["name"], u["revision"]) == ("word", "0" * 10)
    )
    assert main(["du"]) == main(["gc"]) == 0
    said = capsys.readouterr().out
    assert "not current" in said and "--apply does it" in said
    assert main(["gc", "nowhere"]) == 2


def imported(place: Path, text: str) -> None:
    """Import a caption for one row."""
    key = Dataset.open(place / "data/town").reader("base", 0).keys[0]
    (place / f"{key}.txt").write_text(text)
    assert main(["import", "data/town", "--from", f"{key}.txt", "--column", "human"]) == 0


def test_imports_that_no_column_was_made_from_go(place: Path) -> None:
    dataset = place / "data/town"
    going(place, apply=True)
    imported(place, "first")
    (old,) = (path.name for path in (dataset / "imports").iterdir())
    imported(place, "second")
    (new,) = {path.name for path in (dataset / "imports").iterdir()} - {old}
    now = read_json(dataset / "columns/human/current.json")["revision"]
    before = [path.name for path in (dataset / "columns/human").glob("*/") if path.name != now]
    assert going(place, grace_s=DAYS_S + 600) == set(), "a column that stays, stays with what it was made from"
    write_json(dataset / "views/mine/view.json", {"columns": {"human": before[0]}, "revision": "abc"})
    assert going(place) == set()
    shutil.rmtree(dataset / "views")
    assert going(place) == {f"columns/human/{before[0]}", f"imports/{old}"}
    attempt(place, "human-later", column="human", revision=now, job={"args": {"digest": old}})
    assert going(place) == {f"columns/human/{before[0]}"}
    shutil.rmtree(place / "runs/human-later")
    assert main(["du", "data/town", "--json"]) == 0
    going(place, apply=True)
    assert [path.name for path in (dataset / "imports").iterdir()] == [new] and verify(dataset) == []


def test_counts_of_buckets_stay_while_a_training_reads_them(place: Path) -> None:
    dataset = place / "data/town"
    going(place, apply=True)
    (dataset / "buckets").mkdir()
    (dataset / "buckets" / "0123456789abcdef.npy").write_bytes(b"counts")
    attempt(place, "train", kind="train", columns={}, job={"data": {"buckets": {"area": 4096}}})
    assert going(place) == set()
    attempt(place, "train", kind="train", columns={}, job={"data": {"buckets": None}})
    assert going(place) == {"buckets/0123456789abcdef.npy"}
    assert going(place, grace_s=DAYS_S + 600) == set()


def test_only_indexes_of_other_states_of_the_gallery_go(place: Path) -> None:
    dataset = place / "data/town"
    Library(dataset).wait()
    (now,) = (path.name for path in (dataset / ".browse").iterdir())
    add_column(dataset, "later")
    Library(dataset, cache=place / "elsewhere").wait()
    going_now = {path for path in going(place) if path.startswith(".browse")}
    assert going_now == {f".browse/{now}"}
    going(place, apply=True)
    Library(dataset).wait()
    assert not any(path.startswith(".browse") for path in going(place))


def test_du_tells_what_is_beside_the_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = place / "data/town"
    imported(place, "first")
    Library(dataset).wait()
    (dataset / "buckets").mkdir()
    (dataset / "buckets" / "0123456789abcdef.npy").write_bytes(b"counts")
    capsys.readouterr()
    assert main(["du", "data/town", "--json"]) == 0
    used = json.loads(capsys.readouterr().out)
    kinds = {item["kind"]: item for item in used if item["kind"] in ("import", "counts", "gallery")}
    assert kinds["import"]["current"] and kinds["import"]["bytes"] > 100 and kinds["gallery"]["inodes"] > 3
    assert (kinds["counts"]["bytes"], kinds["counts"]["inodes"]) == (6, 2)
    total = sum(path.lstat().st_size for path in dataset.rglob("*") if path.is_file())
    assert sum(item["bytes"] for item in used) == total, "everything once"
