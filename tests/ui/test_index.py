"""The index says of every row what the shards say, is kept, and is made anew when the dataset changes."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from gallery_town import FAILED_FOR_GOOD, FAILED_FOR_NOW, add_column
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.shard import ShardError
from semiocity.data.takedown import carry_out, request
from semiocity.errors import UserError
from semiocity.stages.caption import share_names
from semiocity.ui.browse import building, query
from semiocity.ui.browse import index as indexing
from semiocity.ui.browse import library as libraries
from semiocity.ui.browse.facts import lines, row_facts
from semiocity.ui.browse.index import Index, Options
from semiocity.ui.browse.library import Library


def shard_rows(dataset: Dataset) -> list[tuple[int, int]]:
    return [(s, r) for s in range(dataset.shards) for r in range(len(dataset.reader("base", s)))]


def test_every_row_as_the_shards_have_it(library: Library, town: Path) -> None:
    index, dataset = library.wait().index, Dataset.open(town)
    places = shard_rows(dataset)
    assert len(index) == len(places) == 40
    for i, (shard, row) in enumerate(places):
        names = ["shard", "row", "key", "base.split", "seen.score", "seen.tombstone", "seen.reason", "seen.views"]
        found = index.read(i, names)
        reader = dataset.reader("seen", shard)
        failed = reader.tombstoned(row)
        assert (found["shard"], found["row"], found["key"]) == (shard, row, reader.keys[row])
        assert (found["seen.tombstone"], found["seen.reason"]) == (failed or (None, None))
        expected = reader.scalars(row)
        assert found["seen.views"] == expected["views"]
        assert found["seen.score"] == expected["score"] or math.isnan(found["seen.score"])
        assert index.find(found["key"]) == i
    assert index.find("0000000000-nobody") is None


def test_class_shares_are_those_of_the_label_maps(library: Library, town: Path) -> None:
    index, dataset = library.wait().index, Dataset.open(town)
    view = dataset.view(["base.label"])
    for i in (0, 13, 39):
        ids = np.asarray(Image.open(io.BytesIO(view.read(i)["base.label"])))
        for class_id in range(len(dataset.classes)):
            share = index.read(i, [f"~share.{class_id}"])[f"~share.{class_id}"]
            assert share == pytest.approx((ids == class_id).mean(), abs=1e-6)
            assert index.has(class_id)[i] == (share > 0)


def test_facets_are_those_that_help(library: Library) -> None:
    index = library.wait().index
    assert index.choices["base.split"] == ["train", "val"]
    assert set(index.choices["seen.sharp"]) == {True, False}
    assert "seen.short" in index.texts and "seen.short" not in index.choices
    assert index.choices["seen.tombstone"] == ["permanent", "retry"]
    failed = np.flatnonzero(index.codes("seen.tombstone") >= 0).tolist()
    assert failed == [FAILED_FOR_GOOD, FAILED_FOR_NOW]
    score = index.ranges["seen.score"]
    assert (score["low"], score["high"]) == (0.0, 39 / 40)
    assert score["missing"] == 4, "two failed, one NaN, one without"
    assert int((index.bins("seen.score") != indexing.NOTHING).sum()) == 36


def test_many_batches_hold_the_same_rows(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BATCH_ROWS", 7)
    monkeypatch.setattr(indexing, "BATCH_ROWS", 7)
    building.build(Dataset.open(town), tmp_path, Options(), lambda done, shards: None, lambda: False)
    index = Index(tmp_path)
    keys = [index.read(i, ["key"])["key"] for i in range(len(index))]
    dataset = Dataset.open(town)
    assert keys == [dataset.reader("base", s).keys[r] for s, r in shard_rows(dataset)]


def test_without_contents_no_tar_is_opened(own_town: Path) -> None:
    for tar in own_town.rglob("*.tar"):
        tar.unlink()
    index = Library(own_town, contents=False).wait().index
    assert len(index) == 40
    assert not index.classes


def test_kept_beside_the_dataset_and_made_anew_when_it_changes(own_town: Path) -> None:
    first = Library(own_town)
    first.wait()
    [folder] = (own_town / ".browse").iterdir()
    made = (folder / "facts.json").stat().st_mtime_ns
    again = Library(own_town)
    assert again.progress is None, "nothing is built"
    assert again.wait().version == first.wait().version
    assert (folder / "facts.json").stat().st_mtime_ns == made
    add_column(
        own_town, "rank", {"text": "txt"}, {"rank": "int"}, lambda n, key: ({"text": ("txt", b"x")}, {"rank": n})
    )
    again.refresh()
    shelf = again.wait()
    assert shelf.version != first.wait().version
    assert shelf.index.read(9, ["rank.rank"]) == {"rank.rank": 9}
    [now] = (own_town / ".browse").iterdir()
    assert now != folder, "the index of the former state is gone"


def test_rows_taken_down_are_in_no_index(own_town: Path) -> None:
    shelf = Library(own_town).wait()
    key = shelf.index.read(7, ["key"])["key"]
    assert carry_out(own_town, request(own_town, [key], "asked for"), Owner.here())
    for file in own_town.rglob("*.arrow"):
        assert key.encode() not in file.read_bytes()
    index = Library(own_town).wait().index
    assert index.find(key) is None
    found = index.read(7, ["base.tombstone", "seen.tombstone", "seen.short"])
    assert found == {"base.tombstone": "removed", "seen.tombstone": "removed", "seen.short": None}
    assert "removed" in index.choices["base.tombstone"]
    for file in own_town.rglob("*.arrow"):
        assert key.encode() not in file.read_bytes()


def test_rows_that_a_column_lacks_are_rows_all_the_same(own_town: Path) -> None:
    manifest = own_town / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["columns"]["seen"]["shards"] = 3
    manifest.write_text(json.dumps(facts))
    shelf = Library(own_town).wait()
    assert len(shelf.index) == 40
    assert shelf.index.read(35, ["seen.short", "seen.tombstone"]) == {"seen.short": None, "seen.tombstone": None}
    told = row_facts(shelf, 35)["columns"]["seen"]
    assert "lacks 1 of 4 shards" in told["error"] and told["fields"] == {}


def test_shares_that_a_stage_measured_need_no_tar(own_town: Path) -> None:
    dataset = Dataset.open(own_town)
    names = share_names([spec.name for spec in dataset.classes])
    add_column(
        own_town,
        "told",
        {"text": "txt"},
        {"short": "str", "text": "str", **dict.fromkeys(names, "float")},
        lambda n, key: (
            {"text": ("txt", b"x")},
            {"short": "begins", "text": "begins and goes on", **dict.fromkeys(names, n / 100)},
        ),
    )
    index = Library(own_town, contents=False).wait().index
    assert index.classes[3] == f"told.{names[3]}"
    assert index.has(3).tolist() == [n > 0 for n in range(40)]
    assert not any(name.startswith("~share") for name in index.table.column_names)
    assert not set(index.ranges) & set(index.classes.values())
    assert index.read(0, ["~search"])["~search"].count("begins") == 1, "a caption's beginning is not kept twice"


def test_some_shards(town: Path, tmp_path: Path) -> None:
    index = Library(town, shards=(1, 3), cache=tmp_path).wait().index
    assert {index.read(i, ["shard"])["shard"] for i in range(len(index))} == {1, 2}
    with pytest.raises(UserError, match=r"shards 3:9: there are 0:4"):
        Library(town, shards=(3, 9), cache=tmp_path)


def test_too_many_rows_are_refused(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "ROWS_MOST", 20)
    with pytest.raises(UserError, match=r"40 rows; a gallery shows at most 20.*--shards 0:2"):
        Library(town, cache=tmp_path)


def test_damage_is_named_and_nothing_half_built_stays(own_town: Path) -> None:
    path = ShardPath(Dataset.open(own_town).column("seen").folder, 2)
    path.parquet.write_bytes(path.parquet.read_bytes()[:-20])
    library = Library(own_town)
    with pytest.raises(UserError, match=r"00000002\.parquet: index cannot be read.*semiocity verify"):
        library.wait()
    assert list((own_town / ".browse").iterdir()) == []


def test_damaged_index_is_built_again(own_town: Path) -> None:
    Library(own_town).wait()
    [folder] = (own_town / ".browse").iterdir()
    (folder / "facts.json").write_text(json.dumps({"version": 0, "rows": 40}))
    assert len(Library(own_town).wait().index) == 40


def test_stopped_builder_leaves_nothing(own_town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.Library, "_report", lambda self, done, shards: self._stop.set())
    monkeypatch.setattr(building, "TOGETHER", 1)
    library = Library(own_town)
    library.close()
    assert library.shelf is None
    assert list((own_town / ".browse").iterdir()) == []


def test_read_only_dataset_uses_the_users_cache(
    own_town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file in the way, since root may write anywhere.
    (own_town / ".browse").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(Library(own_town).wait().index) == 40
    assert list((tmp_path / "cache").rglob("rows.arrow"))


def test_shard_made_anew_is_not_mixed_up(own_town: Path) -> None:
    shelf = Library(own_town).wait()
    first, second = (ShardPath(shelf.dataset.column("base").folder, n) for n in (0, 1))
    first.parquet.write_bytes(second.parquet.read_bytes())
    with pytest.raises(ShardError, match="made anew since the gallery was opened"):
        shelf.payload(0, "base", "image")


def test_captions_of_the_source_are_searched_and_shown_without_opening_a_tar(tmp_path: Path) -> None:
    for number, text in enumerate(("a red car in the rain", "two houses", "")):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text) if text else None
    recipe = Recipe.model_validate({"name": "told", "source": {"kind": "folder", "root": str(tmp_path)}})
    plan = make_plan(recipe, tmp_path / "out")
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(tmp_path / "out", "base", plan.revision)
    shelf = Library(tmp_path / "out", contents=False, cache=tmp_path / "index").wait()
    rows = shelf.searcher.find(query.parse({"q": ["RED car"]}, shelf.index)).rows
    (tile,) = lines(shelf, rows.tolist())
    assert tile["caption"] == "a red car in the rain"
    where = query.parse({"where": ['word(base.caption, "houses")']}, shelf.index)
    assert len(shelf.searcher.find(where).rows) == 1
