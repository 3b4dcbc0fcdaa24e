"""Searching: rows by a filter, from the indexes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_images import add_column, folder_recipe, jpeg, packed, write_files

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.search import search
from semiocity.errors import UserError


def test_rows_are_found_without_their_tars(own_town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset.open(own_town)
    view = data.view(["base.image"], "val")
    wanted = [view.key(i) for i in range(len(view))]
    for path in own_town.rglob("*.tar"):
        path.unlink()
    assert [hit.key for hit in search(own_town, 'split == "val"')] == wanted
    for hit in search(own_town, 'split == "val"', ["width", "word.letters"]):
        assert data.reader("base", hit.shard).keys[hit.row] == hit.key
        assert hit.values["width"] == 32 and hit.values["word.letters"] in (len(hit.key), None)

    assert main(["search", str(own_town), 'split == "val"', "--limit", "2", "--columns", "split, width"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{key}\tval\t32" for key in wanted[:2]]
    assert main(["search", str(own_town), 'split == "val"', "--json", "--columns", "split"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["key"], line["split"]) for line in lines] == [(key, "val") for key in wanted]
    assert main(["search", str(own_town), 'split == "val"', "--count"]) == 0
    assert capsys.readouterr().out == f"{len(wanted)}\n"
    assert main(["search", str(own_town), 'split == "nowhere"']) == 0
    assert capsys.readouterr().out == ""


def test_failed_rows_can_be_searched_for(town: Path) -> None:
    failed = [hit.key for hit in search(town, 'word.tombstone == "permanent" and "read" in word.reason')]
    assert failed == [Dataset.open(town).reader("word", 1).keys[2]]
    (hit,) = search(town, "not word.letters > 0", ["word.reason"])
    assert hit.values == {"word.reason": "cannot be read"}


def test_a_wrong_search_is_refused(town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(town), "splt == 'val'"]) == 2
    assert "no scalar splt; did you mean" in capsys.readouterr().err
    with pytest.raises(UserError, match="--columns: no scalar words"):
        search(town, "width > 3", ["words"])


def test_a_column_that_lacks_the_shards_of_added_rows_says_so(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {f"{number}.jpg": jpeg(seed=number) for number in range(8)})
    packed(folder_recipe(root), tmp_path / "out")
    add_column(tmp_path / "out")
    write_files(root, {"20.jpg": jpeg(seed=20)})
    _, data = packed(folder_recipe(root), tmp_path / "out")
    assert len(list(search(tmp_path / "out", "width > 0"))) == 9
    with pytest.raises(UserError, match="column word lacks 1 of 3 shards"):
        search(tmp_path / "out", "word.letters > 0")
    with pytest.raises(UserError, match="column word lacks 1 of 3 shards"):
        data.view(["base.image"], None, "word.letters > 0")


def test_what_a_search_prints_cannot_steer_a_terminal(own_town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Dataset.open(own_town).column("base").folder / "00000" / "00000000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("time")
    pq.write_table(table.set_column(place, "time", pa.array(["\x1b[2J\n"] * len(table))), path)
    assert main(["search", str(own_town), "time is not None", "--columns", "time", "--limit", "1"]) == 0
    assert capsys.readouterr().out.endswith("\t\\x1b[2J\\n\n")
