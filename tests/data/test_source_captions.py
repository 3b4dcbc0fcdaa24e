"""Captions that come with a source: searched and filtered by without opening a tar, as those of a stage are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_images import folder_recipe, jpeg, packed, tree, write_files

from semiocity.cli import main
from semiocity.data import plan as planning
from semiocity.data.columns import Dataset
from semiocity.data.filter import LONGEST_TEXT
from semiocity.data.recipe import Recipe
from semiocity.data.repair import repair
from semiocity.data.search import search
from semiocity.data.shard import ShardPath
from semiocity.data.verify import verify
from semiocity.errors import UserError

LONG = "a very long street " * 200


def described(root: Path, **changes: Any) -> Recipe:
    """Eight pictures, three of them with a caption."""
    texts = {"0.txt": b"a red car", "1.txt": "Regen auf der Straße\n".encode(), "2.txt": LONG.encode()}
    write_files(root, {f"{n}.jpg": jpeg(seed=n) for n in range(8)} | texts)
    return folder_recipe(root, **changes)


def keys(dataset: Path, expression: str) -> list[str]:
    return sorted(hit.key.partition("-")[2] for hit in search(dataset, expression))


def without_caption_scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing as it was in version 2."""
    monkeypatch.setattr(planning, "PACKER_VERSION", 2)


def test_captions_of_a_source_are_found_without_their_tars(tmp_path: Path) -> None:
    _, dataset = packed(described(tmp_path / "in"), tmp_path / "out")
    view = dataset.view(["base.caption"], filter='"Straße" in base.caption')
    assert [view.read(i)["base.caption"] for i in range(len(view))] == ["Regen auf der Straße".encode()]
    assert verify(tmp_path / "out") == []
    for path in (tmp_path / "out").rglob("*.tar"):
        path.unlink()
    assert keys(tmp_path / "out", 'word(base.caption, "car")') == ["0"]
    assert keys(tmp_path / "out", "base.caption is None") == ["3", "4", "5", "6", "7"]
    (hit,) = search(tmp_path / "out", "len(base.caption) > 100", ["base.caption"])
    assert hit.values["base.caption"] == LONG.strip()[:LONGEST_TEXT]


def test_a_caption_is_in_the_row_once(tmp_path: Path) -> None:
    _, dataset = packed(described(tmp_path / "in"), tmp_path / "out")
    view = dataset.view(["base.meta", "base.caption"])
    assert all("caption" not in json.loads(view.read(i)["base.meta"]) for i in range(len(view)))


def test_a_scalar_that_the_source_calls_caption_goes_before(tmp_path: Path) -> None:
    table = "image,words,caption\n" + "".join(f"{n}.jpg,text {n},{n}\n" for n in range(3))
    write_files(tmp_path / "in", {f"{n}.jpg": jpeg(seed=n) for n in range(3)} | {"t.csv": table.encode()})
    source = {
        "kind": "table",
        "root": str(tmp_path / "in"),
        "caption": "words",
        "scalars": {"caption": {"type": "int", "column": "caption"}},
    }
    _, dataset = packed(Recipe.model_validate({"name": "t", "source": source}), tmp_path / "out")
    assert dataset.column("base").scalars["caption"] == "int"
    assert keys(tmp_path / "out", "base.caption >= 1") == ["1", "2"]


def test_a_lost_index_with_captions_is_made_again_from_its_tar(tmp_path: Path) -> None:
    plan, dataset = packed(described(tmp_path / "in", shard_rows=4), tmp_path / "out")
    before = tree(tmp_path / "out")
    for shard in range(plan.shards):
        path = ShardPath(dataset.column("base").folder, shard).parquet
        kept = path.read_bytes()
        path.unlink()
        assert [step.kind for step in repair(tmp_path / "out", apply=True)] == ["index"]
        assert path.read_bytes() == kept
    assert tree(tmp_path / "out") == before


def test_what_was_packed_before_grows_as_it_is_and_a_changed_recipe_brings_the_scalar(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_caption_scalars(monkeypatch)
        old, dataset = packed(described(tmp_path / "in"), tmp_path / "out")
    assert "caption" not in dataset.column("base").scalars
    before = tree(old.folder)
    with pytest.raises(UserError, match=r"base\.caption is a field"):
        list(search(tmp_path / "out", '"car" in base.caption'))
    write_files(tmp_path / "in", {"9.jpg": jpeg(seed=9), "9.txt": b"a late car"})
    grown, dataset = packed(folder_recipe(tmp_path / "in"), tmp_path / "out")
    assert grown.revision == old.revision and grown.shards == old.shards + 1
    assert {name: data for name, data in tree(old.folder).items() if name in before and name.endswith("tar")} == {
        name: data for name, data in before.items() if name.endswith("tar")
    }
    assert "caption" not in dataset.column("base").scalars and verify(tmp_path / "out") == []

    new, dataset = packed(folder_recipe(tmp_path / "in", note="searchable"), tmp_path / "out")
    assert new.revision != old.revision
    assert keys(tmp_path / "out", '"car" in base.caption') == ["0", "9"]
    assert Dataset.open(tmp_path / "out").rows() == 9


def test_the_scalar_changes_no_sample(tmp_path: Path) -> None:
    """So that columns made from the old revision are linked to the new one, not computed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_caption_scalars(monkeypatch)
        old, _ = packed(described(tmp_path / "in"), tmp_path / "out")
    new, _ = packed(described(tmp_path / "in", note="searchable"), tmp_path / "out")
    assert new.revision != old.revision
    tars = [{p.name: p.read_bytes() for p in plan.folder.rglob("*.tar")} for plan in (old, new)]
    assert tars[0] == tars[1]


def test_data_without_captions_keep_their_revision(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"0.jpg": jpeg(seed=0)})
    now = planning.make_plan(folder_recipe(tmp_path / "in"), tmp_path / "now").revision
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_caption_scalars(monkeypatch)
        assert planning.make_plan(folder_recipe(tmp_path / "in"), tmp_path / "then").revision == now


def test_the_command_line_prints_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(described(tmp_path / "in"), tmp_path / "out")
    assert main(["search", str(tmp_path / "out"), 'matches(base.caption, "^a ")', "--columns", "base.caption"]) == 0
    texts = [line.partition("\t")[2] for line in capsys.readouterr().out.splitlines()]
    assert sorted(texts) == sorted(["a red car", LONG.strip()[:LONGEST_TEXT]])
