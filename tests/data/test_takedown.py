"""Rows taken down for good: nothing of them is left, nothing else moves, and they do not come back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from make_images import add_column, folder_recipe, jpeg, packed, write_files

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner, lease
from semiocity.data.listing import id_hash
from semiocity.data.manifest import ShardPath, column_folder, merge, missing, read_receipt
from semiocity.data.plan import make_plan
from semiocity.data.removed import read_removed
from semiocity.data.shard import Head, ShardReader, ShardWriter
from semiocity.data.takedown import _buried, carry_out, remains, request
from semiocity.data.verify import verify
from semiocity.errors import UserError

OWNER = Owner.here("remove")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Twelve pictures in two shards, two columns, the second of them in two revisions; `secret-person` is to go."""
    root = write_files(tmp_path / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(11)})
    write_files(root, {"who/secret-person.jpg": jpeg(seed=99)})
    packed(folder_recipe(root), tmp_path / "out")
    add_column(tmp_path / "out")
    add_column(tmp_path / "out", revision="bbbbbbbbbb")
    return tmp_path / "out"


def key_of(dataset: Path, name: str) -> str:
    view = Dataset.open(dataset).view(["base.meta"])
    return next(view.key(i) for i in range(len(view)) if json.loads(view.read(i)["base.meta"])["id"] == name)


def rows(dataset: Path) -> dict[str, dict[str, object]]:
    view = Dataset.open(dataset).view(["base.image", "word.text"])
    return {view.key(i): view.read(i) for i in range(len(view))}


def take_down(dataset: Path, *names: str) -> list[ShardPath]:
    return carry_out(dataset, request(dataset, [key_of(dataset, name) for name in names], "asked for it"), OWNER)


def traces(folder: Path, *needles: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and any(n in path.read_bytes() for n in needles)]


def test_nothing_of_the_row_is_left_and_nothing_else_has_moved(street: Path) -> None:
    before, key = rows(street), key_of(street, "who/secret-person")
    assert traces(street, b"secret-person", jpeg(seed=99))
    # A task was stopped while it made another revision of a column.
    folder = next((street / "columns" / "base").glob("*/"))
    shard = next(i for i in range(2) if key in ShardReader(ShardPath(folder, i)).keys)
    making = ShardPath(street / "columns" / "word" / "cccccccccc", shard)
    making.parent.mkdir(parents=True)
    making.journal.write_bytes(b"secret-person: a person in a street")
    written = take_down(street, "who/secret-person")
    assert {(path.folder.parent.name, path.folder.name) for path in written} >= {
        ("word", "aaaaaaaaaa"),
        ("word", "bbbbbbbbbb"),
    }
    assert traces(street, b"secret-person", jpeg(seed=99)) == []
    assert rows(street) == {other: row for other, row in before.items() if other != key}
    assert [fault for fault in verify(street) if fault.level == "fault"] == []
    assert list(remains(street)) == []
    facts = json.loads((street / "manifest.json").read_text())
    assert facts["columns"]["base"]["tombstones"]["removed"] == 1
    assert facts["columns"]["word"]["tombstones"]["removed"] == 1
    assert carry_out(street, read_removed(street), OWNER) == [], "again: nothing to do"


def test_columns_are_merged_parents_first(street: Path) -> None:
    """`alpha` comes before its parent `word` in the alphabet."""
    dataset = Dataset.open(street)
    for shard in range(dataset.shards):
        source = read_receipt(ShardPath(dataset.columns["word"].folder, shard))
        assert source is not None
        head = Head(
            column="alpha",
            revision="cccccccccc",
            shard=shard,
            parents={"word": {"revision": source["revision"], "sha256": source["sha256"]}},
            stage={"name": "alpha", "version": 1, "args": {}},
            model=None,
            execution={},
            fields={"text": "txt"},
        )
        with ShardWriter(ShardPath(column_folder(street, "alpha", "cccccccccc"), shard), head) as writer:
            for key in dataset.reader("word", shard).keys:
                writer.add(key, {"text": ("txt", b"a")})
            writer.publish()
    merge(street, "alpha", "cccccccccc")
    take_down(street, "who/secret-person")
    assert [fault for fault in verify(street) if fault.level == "fault"] == []
    assert Dataset.open(street).columns["alpha"].tombstones["removed"] == 1


def test_packing_again_does_not_bring_it_back(street: Path) -> None:
    take_down(street, "who/secret-person", "3")
    recipe = folder_recipe(street.parent / "in")
    plan = make_plan(recipe, street)
    assert missing(plan.folder, plan.shards) == [], "the plan is the same one, and nothing is to be packed"
    shutil.rmtree(plan.folder)
    _, again = packed(recipe, street)
    assert again.columns["base"].tombstones["removed"] == 2
    anew, dataset = packed(folder_recipe(street.parent / "in", shard_rows=5), street)
    assert anew.revision != plan.revision
    assert len(dataset.view(["base.image"])) == 10
    assert anew.rejected == {"removed": 2}
    assert traces(street, b"secret-person", jpeg(seed=99)) == []


def test_the_source_may_lose_the_file_too(street: Path) -> None:
    take_down(street, "who/secret-person")
    (street.parent / "in" / "who" / "secret-person.jpg").unlink()
    write_files(street.parent / "in", {"new.jpg": jpeg(seed=50)})
    plan, dataset = packed(folder_recipe(street.parent / "in"), street)
    assert (len(dataset.view(["base.image"])), plan.shards) == (12, 3)


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_a_removal_that_was_cut_short_is_noticed_and_goes_on(
    street: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    from semiocity.data import takedown

    calls = 0

    def dying(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    name = "_rewrite" if stop_at < 4 else "merge"
    real = getattr(takedown, name)
    wanted = request(street, [key_of(street, "who/secret-person")], "asked for it")
    with monkeypatch.context() as patch:
        patch.setattr(takedown, name, dying)
        stop_at = stop_at if stop_at < 4 else stop_at - 3
        with pytest.raises(KeyboardInterrupt):
            carry_out(street, wanted, OWNER)
    if name == "_rewrite":
        assert list(remains(street))
        assert any("taken down" in fault.what for fault in verify(street))
    carry_out(street, read_removed(street), OWNER)
    assert list(remains(street)) == []
    assert [fault for fault in verify(street) if fault.level == "fault"] == []


def test_a_shard_that_is_being_made_is_named(street: Path) -> None:
    key = key_of(street, "who/secret-person")
    dataset = Dataset.open(street)
    shard = next(s for s in range(dataset.shards) if key in dataset.reader("base", s).keys)
    with (
        lease(ShardPath(dataset.columns["word"].folder, shard).lease, Owner.here("other")),
        pytest.raises(UserError, match=r"word/bbbbbbbbbb.*somebody works on it"),
    ):
        take_down(street, "who/secret-person")


def test_what_cannot_be_asked_for(street: Path) -> None:
    with pytest.raises(UserError, match="no row has the key"):
        request(street, ["0123456789-nobody"], "why")
    with pytest.raises(UserError, match="no row has the key"):
        request(street, ["../x"], "why")
    key = key_of(street, "3")
    with pytest.raises(UserError, match="reason"):
        request(street, [key], " ")
    take_down(street, "3")
    with pytest.raises(UserError, match="taken down already"):
        request(street, [id_hash("3")[:10] + "-removed"], "why")


def test_keys_keep_their_order_also_where_hashes_begin_alike() -> None:
    assert _buried(["a-x", "b-x", "c-x"], {1}) == ["a-x", "b-removed", "c-x"]
    assert _buried(["b-kim", "b-lea", "b-mo"], {1}) == ["b-kim", "b-l", "b-mo"]
    assert _buried(["b-kim", "b-lea", "b-zoe"], {0, 1, 2}) == ["b-k", "b-removed", "b-z"]
