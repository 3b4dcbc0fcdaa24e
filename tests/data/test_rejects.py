"""Files that are no rows are told at the command line: how many, why, where they are listed, and each by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_images import jpeg, packed, write_files

from semiocity.cli import main
from semiocity.data.recipe import load_recipe
from semiocity.data.rejects import counted
from semiocity.errors import UserError
from semiocity.launch.preempt import StopFlag
from semiocity.launch.task import _merge
from semiocity.launch.world import single

HTML = b"<html>404</html>"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose pictures lie in `in`, with a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "street.toml").write_text('[source]\nkind = "folder"\nroot = "in"\n')
    return tmp_path


def pack(rows: int, *sets: str) -> None:
    """What the tasks of `semiocity pack` do."""
    _, dataset = packed(load_recipe(Path("shards/street.toml"), sets), Path("data/street"))
    assert dataset.rows() == rows


def test_pack_columns_and_status_say_how_many_and_why(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a/1.jpg": jpeg(), "a/2.jpg": jpeg(seed=2), "a/3.jpg": jpeg()[:200], "a/4.jpg": HTML, "5.png": HTML}
    write_files(project / "in", files)
    pack(2)
    assert main(["pack", "shards/street.toml"]) == 0
    listed = next(project.glob("data/street/columns/base/*/rejected.jsonl")).relative_to(project)
    counts = "2 rows, 3 rejected: 2 image_unknown, 1 image_damaged"
    assert f"data/street: {counts} ({listed})\n" in capsys.readouterr().out
    assert len(listed.read_text().splitlines()) == 3
    place = {"dataset": "data/street", "column": "base", "revision": listed.parent.name}
    assert _merge(place, 0, single(), StopFlag(), print) and counts in capsys.readouterr().out, "the last task's log"
    assert main(["columns", "data/street"]) == 0
    assert f"dataset street: {counts} ({listed})" in capsys.readouterr().out
    assert main(["columns", "data/street", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == {"image_damaged": 1, "image_unknown": 2}
    assert main(["status"]) == 0 and f"dataset street: {counts}\n" in capsys.readouterr().out
    for name in ("a/3", "a/3.jpg", "3.jpg", "3"):
        assert main(["show", "data/street", name]) == 2
        assert f"{name} is no row: rejected as image_damaged: " in capsys.readouterr().err
    assert main(["show", "data/street", "a/9"]) == 2 and "no row 'a/9'" in capsys.readouterr().err
    assert main(["show", "data/street", "a/1"]) == 0


def test_a_dataset_of_no_rows_is_a_failure(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(project / "in", {f"{i}.jpg": HTML for i in range(3)})
    pack(0)
    assert main(["pack", "shards/street.toml"]) == 1
    assert "data/street: 0 rows, 3 rejected: 3 image_unknown (data/" in capsys.readouterr().out
    (folder,) = project.glob("data/street/columns/base/*/")
    place = {"dataset": "data/street", "column": "base", "revision": folder.name}
    # Of a queued array the last task says so.
    with pytest.raises(UserError, match=r"no row was packed: data/street: 0 rows, 3 rejected: 3 image_unknown"):
        _merge(place, 0, single(), StopFlag(), print)


def test_status_counts_the_receipts_of_a_merged_column(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(project / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(4)})
    pack(4, "shard_rows=2")
    assert main(["status"]) == 0 and "2/2 shards  complete" in capsys.readouterr().out
    next(project.glob("data/street/columns/base/*/00000/00000001.json")).unlink()
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "1/2 shards  its job makes those that are missing" in out and "complete" not in out
    pack(4, "shard_rows=2")
    capsys.readouterr()
    assert main(["status"]) == 0 and "2/2 shards  complete" in capsys.readouterr().out


def test_the_most_frequent_reason_comes_first() -> None:
    assert counted({"a": 1, "b": 12, "c": 1}) == "14 rejected: 12 b, 1 a, 1 c"
    assert counted({}) == "0 rejected"
