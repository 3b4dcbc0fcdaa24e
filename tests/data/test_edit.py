"""Captions corrected by hand: a new revision; what did not change is linked, dependants follow without computing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from make_images import folder_recipe, jpeg, packed, write_files

from semiocity.data.columns import Dataset
from semiocity.data.edit import edit, follow, read_edits
from semiocity.data.lease import Owner
from semiocity.data.manifest import BASE, ShardPath, column_folder, corrected, merge, merged, read_manifest
from semiocity.data.shard import Head, ShardWriter
from semiocity.data.verify import verify
from semiocity.errors import UserError
from semiocity.launch import garbage
from semiocity.stages.base import Made, Row, Stage, StageArgs, Tombstone, revision
from semiocity.stages.runner import run_shards

OWNER = Owner.here("edit")


def add_captions(dataset: Path, failing: str | None = None) -> None:
    opened = Dataset.open(dataset)
    for shard, entry in enumerate(opened.shard_entries(BASE)):
        head = Head(
            column="caption",
            revision="aaaaaaaaaa",
            shard=shard,
            parents={BASE: {"revision": opened.column(BASE).revision, "sha256": entry["sha256"]}},
            stage={"name": "caption", "version": 1, "args": {"captioner": "blip2"}},
            model="0123456789",
            execution={"device": "cpu", "dtype": "float32", "batch": 1},
            fields={"text": "txt"},
            scalars={"short": "str", "captioner": "str"},
        )
        with ShardWriter(ShardPath(column_folder(dataset, "caption", "aaaaaaaaaa"), shard), head) as writer:
            for key in opened.reader(BASE, shard).keys:
                if key == failing:
                    writer.tombstone(key, "permanent", "the model answered nothing")
                else:
                    writer.add(key, {"text": ("txt", f"of {key}".encode())}, {"short": key, "captioner": "blip2"})
            writer.publish()
    merge(dataset, "caption", "aaaaaaaaaa")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Twelve rows in two shards, with captions."""
    root = write_files(tmp_path / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(12)})
    packed(folder_recipe(root), tmp_path / "out")
    add_captions(tmp_path / "out")
    return tmp_path / "out"


def texts(dataset: Path) -> dict[str, tuple[str, str]]:
    view = Dataset.open(dataset).view(["caption.text", "caption.captioner"])
    found = {view.key(i): view.read(i) for i in range(len(view))}
    return {key: (row["caption.text"].decode(), row["caption.captioner"]) for key, row in found.items()}


class Shout(Stage):
    """A stage above captions that counts how often it is asked."""

    name, version, column, Args = "shout", 1, "shout", StageArgs
    asked = 0

    def needs(self) -> tuple[str, ...]:
        return ("caption.text",)

    def fields(self) -> dict[str, str]:
        return {"loud": "txt"}

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        type(self).asked += len(rows)
        return [Made({"loud": ("txt", (row.fields["caption.text"] or b"").upper())}, {}) for row in rows]


def shout(dataset: Path) -> str:
    stage = Shout(StageArgs())
    columns = read_manifest(dataset)["columns"]
    made = revision(stage, {"caption": columns["caption"]["revision"]})
    assert run_shards(stage, dataset, "shout", made, range(columns[BASE]["shards"]), OWNER)
    merge(dataset, "shout", made)
    return made


def test_a_correction_is_a_new_revision_in_which_the_rest_is_linked(street: Path) -> None:
    before = texts(street)
    key = min(before)
    made = edit(street, {key: "A tram in the rain.\nIt is late."}, OWNER)
    assert texts(street) == {**before, key: ("A tram in the rain.\nIt is late.", "hand")}
    new, old = (column_folder(street, "caption", name) for name in (made, "aaaaaaaaaa"))
    assert Dataset.open(street).reader("caption", 0).scalar(0, "short") == "A tram in the rain."
    assert not ShardPath(new, 0).tar.samefile(ShardPath(old, 0).tar)
    assert ShardPath(new, 1).tar.samefile(ShardPath(old, 1).tar)
    assert not verify(street)
    assert edit(street, {key: "again"}, OWNER) != made
    assert texts(street)[key] == ("again", "hand")


def test_dependants_compute_only_the_shard_that_changed(street: Path) -> None:
    first = shout(street)
    edit(street, {min(texts(street)): "corrected"}, OWNER)
    assert "shout" in read_manifest(street)["stale"]
    Shout.asked = 0
    second = shout(street)
    assert second != first
    assert Shout.asked == 6, "the rows of one of the two shards"
    view = Dataset.open(street).view(["shout.loud"])
    assert view.read(0)["shout.loud"] == b"CORRECTED"
    assert len(view) == 12
    assert not verify(street)


def test_other_arguments_or_another_model_are_no_twins(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shout(street)
    for name, value in {
        "version": 2,
        "model_revision": lambda self: "other",
        "settings": lambda self: {"a": 1},
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(Shout, name, value)
            Shout.asked = 0
            shout(street)
            assert Shout.asked == 12, name


def test_without_hard_links_shards_are_copied(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    edit(street, {min(texts(street)): "corrected"}, OWNER)
    assert not verify(street)


def test_a_row_that_failed_gets_a_caption(street: Path) -> None:
    key = min(texts(street))
    add_captions(street, failing=key)
    assert key not in texts(street)
    edit(street, {key: "by hand"}, OWNER)
    assert texts(street)[key] == ("by hand", "hand")


def more_captions(dataset: Path) -> None:
    """What running the caption job again does: make what is missing of its own revision, merge, and follow."""
    add_captions(dataset)
    follow(dataset, "caption", "aaaaaaaaaa", OWNER)


def test_running_the_caption_job_again_does_not_undo_corrections(street: Path) -> None:
    keys = sorted(texts(street))
    once = edit(street, {keys[0]: "first"}, OWNER)
    twice = edit(street, {keys[1]: "second"}, OWNER)
    write_files(street.parent / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(20, 23)})
    packed(folder_recipe(street.parent / "in"), street)
    assert not merged(street, "caption", "aaaaaaaaaa", 3), "the job has something to do"
    more_captions(street)
    found = texts(street)
    assert (found[keys[0]], found[keys[1]]) == (("first", "hand"), ("second", "hand"))
    assert len(found) == 15
    assert read_manifest(street)["columns"]["caption"]["revision"] == twice
    assert merged(street, "caption", "aaaaaaaaaa", 3), "the job is done: what is used is its revision, corrected"
    assert corrected(street, "caption", once) == corrected(street, "caption", "aaaaaaaaaa") == twice
    assert not verify(street)
    more_captions(street)
    assert texts(street) == found, "again: nothing"
    assert {("caption", name) for name in ("aaaaaaaaaa", once, twice)} <= garbage._now(street), "gc leaves them"


def test_files_of_corrections(tmp_path: Path) -> None:
    sheet = tmp_path / "edits.csv"
    sheet.write_text('key,text\na,"one, two"\nb, three \n', encoding="utf-8")
    lines = tmp_path / "edits.jsonl"
    lines.write_text('{"key": "a", "text": "one, two"}\n{"key": "b", "text": "three"}\n')
    assert read_edits(sheet) == read_edits(lines) == {"a": "one, two", "b": "three"}
    sheet.write_text("key,text\na,\n")
    with pytest.raises(UserError, match=r"edits.csv: row 1: needs `key` and `text`"):
        read_edits(sheet)
    sheet.write_text("key,text\na,x\na,y\n")
    with pytest.raises(UserError, match="row 2: a is given two texts"):
        read_edits(sheet)


def test_what_cannot_be_corrected(street: Path) -> None:
    with pytest.raises(UserError, match="no row has the key 0000000000-x, nor have they 1 more"):
        edit(street, {"0000000000-x": "a", "0000000000-y": "b"}, OWNER)
    with pytest.raises(UserError, match="column base has no field text"):
        edit(street, {min(texts(street)): "a"}, OWNER, column="base")
