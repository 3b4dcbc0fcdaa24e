"""Splits that the recipe decides: files beside it, shares cut by a hash, and the rest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from make_images import jpeg, pack_folder, planned, write_files

from semiocity.data.plan import Plan, make_plan
from semiocity.data.recipe import load_recipe
from semiocity.errors import UserError


def recipe_file(folder: Path, root: Path, text: str = "") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "town.toml"
    path.write_text(f'[source]\nkind = "folder"\nroot = "{root}"\n{text}')
    return path


def splits_of(plan: Plan) -> dict[str, str]:
    return {entry.id: entry.split for shard in range(plan.shards) for entry in planned(plan, shard)}


def pictures(root: Path, count: int = 6) -> Path:
    return write_files(root, {f"street {i}.jpg": jpeg(16, 16, seed=i) for i in range(count)})


def test_split_files_lie_beside_the_recipe_and_name_ids_or_files(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    text = '[splits]\nrest = "train"\nfiles = { val = "splits/val.txt", test = "splits/test.txt" }\n'
    path = recipe_file(tmp_path / "shards", root, text)
    write_files(tmp_path / "shards/splits", {"val.txt": b"street 1\r\n\r\nstreet 2.jpg\r\n", "test.txt": b"street 3"})
    found = splits_of(make_plan(load_recipe(path), tmp_path / "out"))
    assert found == {f"street {i}": {1: "val", 2: "val", 3: "test"}.get(i, "train") for i in range(6)}


def test_the_revision_knows_the_split_files_but_not_where_they_lie(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    plans = {}
    for place, content in (("one", b"street 1\n"), ("two", b"street 1\n"), ("three", b"street 2\n")):
        path = recipe_file(tmp_path / place, root, '[splits.files]\nval = "val.txt"\n')
        write_files(path.parent, {"val.txt": content})
        plans[place] = make_plan(load_recipe(path), tmp_path / "out" / place)
    assert plans["one"].revision == plans["two"].revision != plans["three"].revision
    written = (tmp_path / "out/one/plans" / plans["one"].revision / "plan.json").read_text()
    assert str(tmp_path / "one") not in written
    content = json.loads(written)
    assert (content["split_files"]["val"]["lines"], content["split_rows"]["val"]) == (1, 1)
    assert len(content["split_files"]["val"]["sha256"]) == 64
    # Packing opens the plan where the split files are not.
    (tmp_path / "one/val.txt").unlink()
    assert splits_of(Plan.open(tmp_path / "out/one", plans["one"].revision))["street 1"] == "val"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"splits\.files\.val: .*val\.txt: No such file"),
        ({"val.txt": b"\n\n"}, "no lines"),
        ({"val.txt": b"street 1\n", "test.txt": b"street 1\n"}, "street 1 is in the split val already"),
        ({"val.txt": b"street 1\n", "test.txt": b"path/street 2.jpeg\n"}, r"splits\.files\.test: none of its 1 lines"),
    ],
    ids=["absent", "empty", "twice", "fits nothing"],
)
def test_split_files_that_cannot_be_meant(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    root = pictures(tmp_path / "in", 3)
    path = recipe_file(tmp_path / "shards", root, '[splits.files]\nval = "val.txt"\ntest = "test.txt"\n')
    write_files(path.parent, files)
    with pytest.raises(UserError, match=message):
        make_plan(load_recipe(path), tmp_path / "out")


def test_shares_are_met_and_no_row_moves_when_others_come(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {f"{i:04d}.jpg": b"x" for i in range(1000)})
    path = recipe_file(tmp_path / "shards", root, "[splits.fractions]\nval = 0.1\ntest = 0.2\n")
    before = splits_of(make_plan(load_recipe(path), tmp_path / "one"))
    counts = Counter(before.values())
    assert 60 <= counts["val"] <= 140 and 150 <= counts["test"] <= 250 and set(counts) == {"train", "val", "test"}
    write_files(root, {f"{i:04d}.jpg": b"x" for i in range(1000, 1100)})
    after = splits_of(make_plan(load_recipe(path), tmp_path / "two"))
    assert {after[id] == split for id, split in before.items()} == {True}
    # The first share is what the source's own val_fraction would take.
    sets = ["splits={}", "source.val_fraction=0.1"]
    own = splits_of(make_plan(load_recipe(path, sets), tmp_path / "three"))
    assert {id for id, split in own.items() if split == "val"} == {id for id, split in after.items() if split == "val"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[splits.fractions]\nval = 0.6\ntest = 0.6\n", "more than 1 together"),
        ("[splits.fractions]\nval = 0.0\n", "greater than 0"),
        ('[splits]\nrest = "a b"\n', "pattern"),
        ('[splits.files]\n"../x" = "a.txt"\n', "pattern"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file(tmp_path / "shards", tmp_path, table))


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg"
    (tmp_path / "in").mkdir()
    Path(str(tmp_path / "in") + "/" + name.decode("utf-8", "surrogateescape")).write_bytes(jpeg())
    write_files(tmp_path / "in", {"other.jpg": jpeg()})
    (tmp_path / "val.txt").write_bytes(b"caf\xe9\n")
    rows, _ = pack_folder(tmp_path / "in", tmp_path / "out", splits={"files": {"val": str(tmp_path / "val.txt")}})
    assert sorted(row["meta"]["split"] for row in rows.values()) == ["train", "val"]
