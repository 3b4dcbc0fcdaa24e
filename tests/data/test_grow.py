"""A source that has grown: what is packed stays as it is, new rows go into new shards of the same revision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from make_images import add_column, folder_recipe, jpeg, pack_folder, packed, png, tree, write_files

from semiocity.cli import main
from semiocity.data import listing
from semiocity.data.columns import Dataset
from semiocity.data.keys import Key, key_of
from semiocity.data.lease import Owner
from semiocity.data.manifest import missing
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import load_recipe
from semiocity.data.verify import verify
from semiocity.errors import UserError
from semiocity.launch import jobs


def pictures(*numbers: int) -> dict[str, bytes]:
    return {f"{number}.jpg": jpeg(seed=number) for number in numbers}


def test_new_rows_go_into_new_shards(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", pictures(*range(8)))
    first, _ = packed(folder_recipe(root), tmp_path / "out")
    before = {path: path.read_bytes() for path in first.folder.rglob("*.tar")}
    assert len(before) == 2
    write_files(root, pictures(20, 21, 22) | {"broken.jpg": b"<html>"})

    plan = make_plan(folder_recipe(root), tmp_path / "out")
    assert plan.revision == first.revision
    assert missing(plan.folder, plan.shards) == [2], "only what is new is to be packed"
    _, dataset = packed(folder_recipe(root), tmp_path / "out")
    assert {path: path.read_bytes() for path in before} == before
    view = dataset.view(["base.image"])
    found = Counter(row["base.image"] for row in map(view.read, range(len(view))))
    assert found == Counter([*pictures(*range(8), 20, 21, 22).values()])
    assert not verify(tmp_path / "out", quick=True)
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (facts["files_seen"], facts["rows"], facts["rejected"]) == (12, 11, {"image_unknown": 1})


def test_growing_twice_and_planning_again_change_nothing_that_is_there(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", pictures(1, 2))
    recipe, out = folder_recipe(root), tmp_path / "out"
    revision = make_plan(recipe, out).revision
    write_files(root, pictures(3))
    make_plan(recipe, out)
    write_files(root, pictures(4, 5))
    plan = make_plan(recipe, out)
    assert plan.revision == revision
    assert [sorted(row.entry.id for row in plan.rows(shard) if row.entry) for shard in range(plan.shards)] == [
        ["1", "2"],
        ["3"],
        ["4", "5"],
    ]
    files = {path: path.read_bytes() for path in (out / "plans").rglob("*") if path.is_file()}
    again = make_plan(recipe, out)
    assert again.content == plan.content
    assert {path: path.read_bytes() for path in (out / "plans").rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("what", ["changed", "gone", "setting"])
def test_rows_that_changed_are_planned_anew(tmp_path: Path, what: str) -> None:
    root = write_files(tmp_path / "in", pictures(1, 2, 3))
    first = make_plan(folder_recipe(root), tmp_path / "out")
    write_files(root, pictures(4))
    match what:
        case "changed":
            (root / "2.jpg").write_bytes(jpeg(80, 60))
        case "gone":
            (root / "2.jpg").unlink()
    settings = {"shard_rows": 2} if what == "setting" else {}
    plan = make_plan(folder_recipe(root, **settings), tmp_path / "out")
    assert plan.revision != first.revision
    assert plan.rows_planned == (3 if what == "gone" else 4)
    assert len(plan.content["parts"]) == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("changed", r"1 rows of the plan differ now \(first: 2\.jpg\)\. .*`semiocity remove"),
        ("gone", r"2 of its rows are gone from the source \(first: [0-9a-f]{10}-[13]\)\. .*`semiocity remove"),
        ("both", r"1 rows of the plan differ now \(first: 2\.jpg\); 1 of its rows are gone"),
        ("setting", r"recipe: shard_rows: 6 -> 2\. .*Put the recipe's keys"),
        ("lost", "the plan of what is packed cannot be read"),
    ],
)
def test_what_is_packed_is_not_planned_anew_unasked(tmp_path: Path, what: str, message: str) -> None:
    root, out = write_files(tmp_path / "in", pictures(1, 2, 3)), tmp_path / "out"
    first, _ = packed(folder_recipe(root), out)
    add_column(out)
    write_files(root, pictures(4))
    settings = {"shard_rows": 2} if what == "setting" else {}
    if what in ("changed", "both"):
        (root / "2.jpg").write_bytes(jpeg(80, 60))
    for name in {"gone": "13", "both": "1"}.get(what, ""):
        (root / f"{name}.jpg").unlink()
    if what == "lost":
        (out / "plans" / first.revision / "plan.json").unlink()
    before = tree(out)
    with pytest.raises(UserError, match=message) as caught:
        make_plan(folder_recipe(root, **settings), out)
    assert "out of date, until their jobs have run again: word." in str(caught.value) and "--anew" in str(caught.value)
    assert tree(out) == before, "nothing is written"
    plan = make_plan(folder_recipe(root, **settings), out, anew=True)
    assert plan.revision != first.revision
    assert make_plan(folder_recipe(root, **settings), out).revision == plan.revision, "asked once; retries need no flag"


def test_what_is_packed_but_not_yet_merged_is_not_planned_anew_either(tmp_path: Path) -> None:
    root, out = write_files(tmp_path / "in", pictures(1, 2, 3)), tmp_path / "out"
    plan = make_plan(folder_recipe(root), out)
    (root / "1.jpg").unlink()
    plan = make_plan(folder_recipe(root), out)
    assert plan.rows_planned == 2, "nothing was packed yet"
    assert pack_shards(plan, range(plan.shards), Owner.here())
    (root / "2.jpg").unlink()
    with pytest.raises(UserError, match="1 of its rows are gone"):
        make_plan(folder_recipe(root), out)


def test_corrections_are_named_before_they_stay_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_files(tmp_path / "in", pictures(1, 2, 3))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(f'source = {{ kind = "folder", root = "{root}" }}\n')
    out = tmp_path / "data" / "r"
    packed(load_recipe(Path("r.toml"), []), out)
    add_column(out)
    key = Dataset.open(out).reader("word", 0).keys[0]
    assert main(["edit", str(out), "--column", "word", "--key", key, "--text", "mine"]) == 0
    corrected = Dataset.open(out).column("word").revision
    (root / "2.jpg").unlink()
    capsys.readouterr()
    assert main(["pack", "r.toml"]) == 2
    told = f"`semiocity edit {out} --column word --from-revision {corrected}` brings them"
    assert told in capsys.readouterr().err
    assert Dataset.open(out).column("word").revision == corrected
    work = jobs.pack(Path("r.toml"), [], Path("jobs/pack.toml"), anew=True)
    assert told in capsys.readouterr().err and work.revision != Dataset.open(out).column("base").revision
    assert jobs.pack(Path("r.toml"), [], Path("jobs/pack.toml")).revision == work.revision, "as a retry has it"
    assert main(["pack", "r.toml", "--dry-run", "--anew"]) == 0, "the flag is there"


def test_a_plan_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for root in ("in", "nowhere"):
        with pytest.raises(UserError):
            make_plan(folder_recipe(tmp_path / root), tmp_path / "data" / "x")
        assert not (tmp_path / "data" / "x").exists()


def test_a_file_that_is_rejected_only_does_not_make_a_new_revision(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", pictures(1, 2))
    first = make_plan(folder_recipe(root), tmp_path / "out")
    (root / "pipe.jpg").symlink_to("nowhere")
    plan = make_plan(folder_recipe(root), tmp_path / "out")
    assert (plan.revision, plan.shards, plan.files_seen) == (first.revision, first.shards, 3)
    assert plan.rejected == {"broken_link": 1}


def test_a_second_file_of_a_packed_name_is_a_duplicate_whatever_its_ending(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": jpeg(seed=1)})
    pack_folder(root, tmp_path / "out")
    write_files(root, {"a.JPG": jpeg(seed=2), "a.png": png(seed=3)})  # a.JPG would come first if all were new
    rows, rejected = pack_folder(root, tmp_path / "out")
    assert list(rows) == ["a.jpg"]
    assert rejected == dict.fromkeys(("a.JPG", "a.png"), ("duplicate_id", "a.jpg is packed"))


def test_a_new_row_never_takes_a_key_that_is_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clashing(id: str, digits: int = 10) -> Key:
        return Key("0123456789-same") if digits == 10 else key_of(id, digits)

    monkeypatch.setattr(listing, "key_of", clashing)
    root = write_files(tmp_path / "in", pictures(5))
    make_plan(folder_recipe(root), tmp_path / "out")
    write_files(root, pictures(4))  # sorts first
    plan = make_plan(folder_recipe(root), tmp_path / "out")
    assert {row.entry.id: row.key for row in plan.all_rows() if row.entry} == {
        "5": "0123456789-same",
        "4": key_of("4", 20),
    }


def test_the_dataset_as_it_was_has_the_order_that_it_had(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", pictures(*range(8)))
    packed(folder_recipe(root), tmp_path / "out")
    add_column(tmp_path / "out")
    before = Dataset.open(tmp_path / "out")
    old = [before.view([name], "train") for name in ("base.image", "word.text")]
    facts = [(view.digest, view.shard_sizes) for view in old]
    write_files(root, pictures(20, 21))
    packed(folder_recipe(root), tmp_path / "out")
    for _ in range(2):  # first while the column still has two shards, then when it has followed
        then = Dataset.as_of(tmp_path / "out", 2)
        views = [then.view([name], "train") for name in ("base.image", "word.text")]
        assert [(view.digest, view.shard_sizes) for view in views] == facts
        assert (then.digest, then.splits, then.columns) == (before.digest, before.splits, before.columns)
        add_column(tmp_path / "out")
    assert Dataset.open(tmp_path / "out").view(["base.image"], "train").digest != facts[0][0]
    with pytest.raises(UserError, match="has 3 shards, fewer than the 9 it once had"):
        Dataset.as_of(tmp_path / "out", 9)


def test_a_training_goes_on_with_the_rows_that_it_began_with(tmp_path: Path) -> None:
    from semiocity.launch.world import World
    from semiocity.train.feed import open_as_begun

    root, run = write_files(tmp_path / "in", pictures(*range(8))), tmp_path / "run"
    packed(folder_recipe(root), tmp_path / "out")
    world = World(0, 1, 0, 1, "localhost", 10_000, "1", 0)
    digest = open_as_begun(tmp_path / "out", run, world).view(["base.image"]).digest
    write_files(root, pictures(20, 21))
    packed(folder_recipe(root), tmp_path / "out")
    assert open_as_begun(tmp_path / "out", run, world).view(["base.image"]).digest == digest
    assert open_as_begun(tmp_path / "out", tmp_path / "new run", world).view(["base.image"]).digest != digest


def test_a_column_that_lacks_the_new_shards_says_so(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", pictures(1, 2))
    packed(folder_recipe(root), tmp_path / "out")
    add_column(tmp_path / "out")
    write_files(root, pictures(3))
    _, dataset = packed(folder_recipe(root), tmp_path / "out")
    assert len(dataset.view(["base.image"])) == 3
    with pytest.raises(UserError, match=r"column word lacks 1 of 2 shards.*run its job again"):
        dataset.view(["base.image", "word.text"])
    add_column(tmp_path / "out")
    assert len(Dataset.open(tmp_path / "out").view(["base.image", "word.text"])) == 3
