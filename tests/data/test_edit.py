"""Captions corrected by hand: a new revision; what did not change is linked, dependants follow without computing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
from make_images import city_recipe, folder_recipe, jpeg, packed, tree, write_files

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.corrected import catch_up, follow
from semiocity.data.edit import edit, read_edits
from semiocity.data.keys import key_of
from semiocity.data.lease import Owner
from semiocity.data.manifest import BASE, ShardPath, column_folder, corrected, merge, merged, missing, read_manifest
from semiocity.data.provenance import columns, use
from semiocity.data.removed import read_removed
from semiocity.data.repair import repair
from semiocity.data.shard import Head, ShardWriter
from semiocity.data.state import pointers
from semiocity.data.takedown import carry_out, remains, request
from semiocity.data.verify import verify
from semiocity.errors import UserError
from semiocity.launch import garbage, jobs
from semiocity.stages.base import Made, Row, Stage, StageArgs, Tombstone, revision
from semiocity.stages.runner import run_shards

OWNER = Owner.here("edit")


def add_captions(
    dataset: Path,
    failing: str | None = None,
    kind: Literal["permanent", "retry"] = "permanent",
    made: str = "aaaaaaaaaa",
) -> None:
    opened = Dataset.open(dataset)
    for shard, entry in enumerate(opened.shard_entries(BASE)):
        head = Head(
            column="caption",
            revision=made,
            shard=shard,
            parents={BASE: {"revision": opened.column(BASE).revision, "sha256": entry["sha256"]}},
            stage={"name": "caption", "version": 1, "args": {"captioner": "blip2"}},
            model="0123456789",
            execution={"device": "cpu", "dtype": "float32", "batch": 1},
            fields={"text": "txt"},
            scalars={"short": "str", "captioner": "str"},
        )
        with ShardWriter(ShardPath(column_folder(dataset, "caption", made), shard), head) as writer:
            for key in opened.reader(BASE, shard).keys:
                if key == failing:
                    writer.tombstone(key, kind, "the model answered nothing")
                else:
                    writer.add(key, {"text": ("txt", f"of {key}".encode())}, {"short": key, "captioner": "blip2"})
            writer.publish()
    merge(dataset, "caption", made)


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


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:  # in place: what is linked is damaged too
        file.write(data)


def test_a_lost_correction_is_had_back(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = sorted(texts(street))
    edit(street, {keys[0]: "first"}, OWNER)
    made = edit(street, {keys[0]: "second", keys[1]: "third"}, OWNER)
    before, told = tree(street), texts(street)
    flip(ShardPath(column_folder(street, "caption", made), 0).tar)
    assert main(["repair", str(street), "--apply"]) == 1
    command = f"semiocity edit {street} --column caption --again"
    assert command in capsys.readouterr().out
    assert main(command.split()[1:]) == 0
    assert texts(street) == told and not verify(street)
    assert tree(street) == before, "to the byte"
    assert main(command.split()[1:]) == 0, "again: nothing"


def test_what_is_lost_with_its_original_is_made_by_the_captions_job(street: Path) -> None:
    keys = sorted(texts(street))
    edit(street, {keys[0]: "first"}, OWNER)
    edit(street, {keys[1]: "second"}, OWNER)
    before, told = tree(street), texts(street)
    flip(ShardPath(column_folder(street, "caption", "aaaaaaaaaa"), 1).tar)  # linked to those of both corrections
    repair(street, apply=True)
    with pytest.raises(UserError, match=r"aaaaaaaaaa has lost 1 shards as well .*00000001.*`semiocity caption "):
        catch_up(street, "caption", pointers(street)["caption"], OWNER)
    original = column_folder(street, "caption", "aaaaaaaaaa")
    assert missing(original, 2) == [1], "the job has something to do"
    more_captions(street)
    assert texts(street) == told and not verify(street)
    assert tree(street) == before


def test_a_correction_that_was_corrected_further_is_had_back(street: Path) -> None:
    keys = sorted(texts(street))
    once = edit(street, {keys[0]: "first"}, OWNER)
    twice = edit(street, {keys[-1]: "second"}, OWNER)
    before = tree(street)
    flip(ShardPath(column_folder(street, "caption", once), 0).tar)  # written there, and linked to from the other
    repair(street, apply=True)
    catch_up(street, "caption", twice, OWNER)
    assert tree(street) == before and not verify(street)


def test_corrections_whose_texts_were_not_kept(street: Path) -> None:
    """As those of earlier versions: what was linked is linked again, the rest cannot be known."""
    made = edit(street, {min(texts(street)): "first"}, OWNER)
    before = tree(street)
    shutil.rmtree(street / "edits")
    folder = column_folder(street, "caption", made)
    ShardPath(folder, 1).tar.unlink()
    catch_up(street, "caption", made, OWNER)
    assert tree(street) == {name: data for name, data in before.items() if not name.startswith("edits")}
    ShardPath(folder, 0).tar.unlink()
    with pytest.raises(UserError, match=r"texts were not kept.*`semiocity columns .* --use caption=aaaaaaaaaa`"):
        catch_up(street, "caption", made, OWNER)
    use(street, "caption", "aaaaaaaaaa")
    assert not verify(street)


def test_corrections_are_undone_and_redone(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, key = texts(street), min(texts(street))
    made = edit(street, {key: "mine"}, OWNER)
    assert main(["columns", str(street), "--use", "caption=aaaaaaaaaa"]) == 0
    shown = capsys.readouterr().out
    assert f"1 corrections by hand in caption/{made} are not in caption/aaaaaaaaaa" in shown
    assert texts(street) == before
    write_files(street.parent / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(20, 23)})
    packed(folder_recipe(street.parent / "in"), street)
    more_captions(street)
    assert len(texts(street)) == 15 and texts(street)[key] == before[key], "running the job does not redo them"
    assert main(["columns", str(street), "--use", f"caption={made}"]) == 0
    assert "not in" not in capsys.readouterr().out
    assert len(texts(street)) == 15 and texts(street)[key] == ("mine", "hand")
    assert not verify(street)


def test_corrections_are_brought_to_another_revision(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, named = street.parent / "in", {name: key_of(name) for name in "012345"}
    edit(street, {named["0"]: "zero", named["1"]: "one", named["2"]: "two"}, OWNER)
    made = edit(street, {named["2"]: "two again", named["3"]: "three"}, OWNER)
    (root / "0.jpg").unlink()
    write_files(root, {"1.jpg": jpeg(80, 60)})
    packed(folder_recipe(root, image={"resize": "crop", "size": [16, 16]}), street)
    add_captions(street, made="bbbbbbbbbb")
    assert "hand" not in {captioner for _, captioner in texts(street).values()}
    assert columns(street)["columns"][1]["notes"][0].startswith(f"4 corrections by hand in caption/{made} are not in")
    capsys.readouterr()
    assert main(["edit", str(street), "--from-revision", made]) == 0
    said = capsys.readouterr().out
    assert "with 2 corrections" in said and "1 more are of rows that are no longer there" in said
    assert (
        f"1 rows have another picture than their text was written for and were left as they are: {named['1']}" in said
    )
    hand = {key: text for key, (text, captioner) in texts(street).items() if captioner == "hand"}
    assert hand == {named["2"]: "two again", named["3"]: "three"}, "resized pictures are the same pictures"
    assert columns(street)["columns"][1]["notes"] == [] and not verify(street)
    assert main(["edit", str(street), "--from-revision", "0123456789"]) == 2
    assert "no corrections are kept of caption/0123456789" in capsys.readouterr().err


def test_the_job_that_makes_captions_says_what_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    town = tmp_path / "data" / "town"
    packed(city_recipe(), town)
    (tmp_path / "caption.toml").write_text('stage = "caption"\ndataset = "data/town"\n[args]\ncaptioner = "labels"\n')
    work = jobs.stage(Path("caption.toml"), [])
    add_captions(town, made=work.revision)
    made = edit(town, {min(texts(town)): "mine"}, OWNER)
    capsys.readouterr()
    jobs.stage(Path("caption.toml"), [])
    assert "note" not in capsys.readouterr().err, "the same job: they come along"
    packed(city_recipe(source={"train": 13}), town)
    jobs.stage(Path("caption.toml"), [])
    assert f"1 corrections by hand in caption/{made} are not in caption/" in capsys.readouterr().err


def test_rows_that_were_tried_again_arrive_in_corrections(street: Path) -> None:
    first, second, *_ = sorted(texts(street))
    add_captions(street, failing=second, kind="retry")
    edit(street, {first: "mine"}, OWNER)
    assert second not in texts(street)
    more_captions(street)
    assert texts(street)[second] == (f"of {second}", "blip2") and texts(street)[first] == ("mine", "hand")
    assert not verify(street)


def test_a_row_that_is_taken_down_takes_its_correction_along(street: Path) -> None:
    key, other, *_ = sorted(texts(street))
    made = edit(street, {key: "a name", other: "stays"}, OWNER)
    again = street / "edits" / "caption" / f"{made}.jsonl"
    kept = again.read_bytes()
    owner = Owner.here("remove")
    carry_out(street, request(street, [key], "asked for"), owner)
    assert key not in again.read_text() and "a name" not in again.read_text() and "stays" in again.read_text()
    assert not verify(street)
    with pytest.raises(UserError, match="was taken down"):
        edit(street, {f"{key[:10]}-removed": "x"}, owner)
    again.write_bytes(kept)
    assert [str(path) for path, _ in remains(street)] == [str(again)]
    carry_out(street, read_removed(street), owner)
    assert not list(remains(street))


def test_the_same_text_again_does_nothing(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = min(texts(street))
    made = edit(street, {key: "mine"}, OWNER)
    before = tree(street)
    assert edit(street, {key: " mine\n"}, OWNER) == made
    assert main(["edit", str(street), "--key", key, "--text", "mine"]) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert tree(street) == before


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused_and_leaves_nothing(
    street: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(street)
    assert main(["edit", str(street), "--key", min(texts(street)), "--text", text]) == 2
    assert "the text is empty" in capsys.readouterr().err
    ShardPath(column_folder(street, "caption", "aaaaaaaaaa"), 0).receipt.rename(street / "aside")
    assert main(["edit", str(street), "--key", min(before), "--text", "x"]) == 2
    assert "caption/aaaaaaaaaa/00000000: missing; `semiocity repair" in capsys.readouterr().err
    (street / "aside").rename(ShardPath(column_folder(street, "caption", "aaaaaaaaaa"), 0).receipt)
    assert tree(street) == before


@pytest.mark.parametrize("more", [[], ["--again", "--key", "a", "--text", "b"], ["--key", "a"], ["--again"]])
def test_what_is_asked_for_must_be_clear(street: Path, more: list[str]) -> None:
    assert main(["edit", str(street), *more]) == 2


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
