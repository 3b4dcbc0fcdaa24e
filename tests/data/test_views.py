"""Views: rows narrowed by filters and joins, on the fly and saved, and what a saved one pins."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from make_images import city_recipe, dice, folder_recipe, jpeg, packed, tree, write_files

from semiocity.config import check
from semiocity.data import saved, view_build, views
from semiocity.data.aspects import AspectBuckets, bucketed
from semiocity.data.columns import Dataset, View
from semiocity.data.lease import Owner
from semiocity.data.manifest import column_folder, merge, read_manifest
from semiocity.data.shard import Head, ShardPath, ShardWriter
from semiocity.data.takedown import carry_out, request
from semiocity.data.view_build import build
from semiocity.data.views import ViewJob, ViewPlan, plan_again, plan_view, read_view
from semiocity.errors import UserError

FIELDS = ["base.image", "notes.text"]


def add_notes(dataset: Path, revision: str = "bbbbbbbbbb", tweak: int = 0) -> None:
    """A column in which every fifth row failed and every third lacks its field; scalars score and group."""
    base = Dataset.open(dataset)
    number = tweak
    for shard, entry in enumerate(base.shard_entries("base")):
        head = Head(
            column="notes",
            revision=revision,
            shard=shard,
            parents={"base": {"revision": base.column("base").revision, "sha256": entry["sha256"]}},
            stage={"name": "notes", "version": 1, "args": {"prompt": "what is this?"}},
            model="m" * 64,
            execution={"device": "cpu", "dtype": "float32", "batch": 1},
            fields={"text": "txt", "more": "more.txt"},
            scalars={"score": "float", "group": "str", "share.a": "float"},
        )
        with ShardWriter(ShardPath(column_folder(dataset, "notes", revision), shard), head) as writer:
            for key in base.reader("base", shard).keys:
                number += 1
                if number % 5 == 0:
                    writer.tombstone(key, "permanent", "cannot be read")
                    continue
                fields = {"more": ("more.txt", b"more")} | ({"text": ("txt", key.encode())} if number % 3 else {})
                group = "val" if number % 4 == 0 else "train" if number % 4 < 3 else None
                writer.add(key, fields, {"score": number / 20, "group": group, "share.a": 1 / number})
            writer.publish()
    merge(dataset, "notes", revision)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows in 5 shards, columns base and notes. Read only, but for views."""
    folder = tmp_path_factory.mktemp("data") / "town"
    packed(city_recipe(shard_rows=4), folder)
    add_notes(folder)
    return folder


@pytest.fixture
def town(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "town"))


def keys(view: View) -> list[str]:
    return [view.key(i) for i in range(len(view))]


def facts(dataset: Path) -> list[dict[str, Any]]:
    """key, split, score, group, failed and has (the field notes.text) of every row, read the slow way."""
    data = Dataset.open(dataset)
    found = []
    for shard in range(data.shards):
        base, notes = data.reader("base", shard), data.reader("notes", shard)
        for i, key in enumerate(base.keys):
            row = {"key": key, "failed": notes.tombstoned(i) is not None, "has": notes.column("text.offset")[i]}
            found.append(row | {n: notes.scalar(i, n) for n in ("score", "group")} | base.scalars(i))
    return found


def job(dataset: Path, **more: Any) -> ViewJob:
    return check({"dataset": str(dataset), "fields": FIELDS, **more}, ViewJob, where="views/some.toml")


def made(dataset: Path, name: str = "some", **more: Any) -> ViewPlan:
    plan = plan_view(job(dataset, **more), name, "views/some.toml")
    assert build(plan, range(plan.shards))
    view_build.merge(plan)
    return plan


def small_thousands(monkeypatch: pytest.MonkeyPatch, shards: int = 2) -> None:
    """Parts of two shards, one a row group, so that five shards are many."""
    for module in (views, view_build, saved):
        monkeypatch.setattr(module, "FOLDER_SHARDS", shards)
    monkeypatch.setattr(view_build, "GROUP_SHARDS", 1)


# ---------------------------------------------------------------- on the fly


def test_a_filter_narrows_a_view(shared: Path) -> None:
    data, rows = Dataset.open(shared), facts(shared)
    view = data.view(["base.image"], "train", "notes.score > 0.5 and width == 32")
    wanted = [row["key"] for row in rows if row["split"] == "train" and (row["score"] or 0) > 0.5]
    assert keys(view) == wanted and 0 < len(wanted) < 20
    assert sum(view.shard_sizes) == len(wanted) and len(view.shard_sizes) == 5
    assert {view.scalars(i)["split"] for i in range(len(view))} == {"train"}
    everything = data.view(["base.image"], None, "notes.tombstone is not None")
    assert keys(everything) == [row["key"] for row in rows if row["failed"]], "a filter alone leaves nothing out"


def test_rows_that_failed_or_lack_a_field_are_joined_as_asked(shared: Path) -> None:
    data, rows = Dataset.open(shared), facts(shared)
    there = [row["key"] for row in rows if not row["failed"]]
    assert keys(data.view(FIELDS)) == there, "tombstones are left out, what is lacking is None"
    assert None in [data.view(FIELDS).read(i)["notes.text"] for i in range(len(there))]

    skipping = data.view(FIELDS, join={"notes": "skip"})
    assert keys(skipping) == [row["key"] for row in rows if row["has"] is not None]
    assert all(skipping.read(i)["notes.text"] for i in range(len(skipping)))

    keeping = data.view(FIELDS, join={"notes": "none"})
    assert keys(keeping) == [row["key"] for row in rows]
    values = [keeping.read(i)["notes.text"] for i in range(len(keeping))]
    assert [value is not None for value in values] == [row["has"] is not None for row in rows]

    with pytest.raises(UserError, match=r'join\.notes = "error", but \d+ rows of shard .* the first is [0-9a-f]{10}-'):
        len(data.view(FIELDS, join={"notes": "error"}))
    assert len(data.view(FIELDS, None, "notes.text.length is not None", join={"notes": "error"})) == len(skipping)
    scalar = data.view(["notes.group"], join={"notes": "skip"})
    assert keys(scalar) == [row["key"] for row in rows if row["group"] is not None], "a scalar may be lacking too"


def test_another_scalar_may_say_the_split(shared: Path) -> None:
    data, rows = Dataset.open(shared), facts(shared)
    view = data.view(["base.image"], "val", split_by="notes.group")
    assert keys(view) == [row["key"] for row in rows if row["group"] == "val"]
    assert view.digest != data.view(["base.image"], "val").digest


def test_random_views_agree_with_the_slow_way(shared: Path) -> None:
    r, data, rows = dice(), Dataset.open(shared), facts(shared)
    for _ in range(25):
        low, split = r.random(), r.choice([None, "train", "val"])
        policy: Literal["skip", "none"] | None = r.choice([None, "skip", "none"])
        text = r.choice([None, f"notes.score >= {low}", f"not notes.score >= {low}"])
        view = data.view(FIELDS, split, text, join={"notes": policy} if policy else None)

        wanted = []
        for row in rows:
            high = row["score"] is not None and row["score"] >= low
            if (
                (split is None or row["split"] == split)
                and (text is None or high == (not text.startswith("not ")))
                and (policy == "none" or not row["failed"])
                and (policy != "skip" or row["has"] is not None)
            ):
                wanted.append(row["key"])
        assert keys(view) == wanted, (text, split, policy)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"filter": "notes.scor > 1"}, "filter: column notes has no scalar scor; did you mean notes.score"),
        ({"join": {"nots": "skip"}}, "join.nots: no such column"),
        ({"split_by": "notes.score"}, "split_by: notes.score is of type float, not str"),
        ({"split_by": "notes.groups"}, "split_by: no scalar notes.groups; of the right type there are: base"),
        ({"split": "test"}, "no split test; there are train, val"),
    ],
)
def test_a_wrong_view_is_refused_before_anything_is_read(shared: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset.open(shared).view(FIELDS, **more)


# ---------------------------------------------------------------- saved


@pytest.mark.parametrize("thousand", [2, 1000])
def test_a_saved_view_has_the_rows_of_the_same_view_on_the_fly(
    town: Path, thousand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_thousands(monkeypatch, thousand)
    rule: dict[str, Any] = {"filter": "notes.score > 0.2", "join": {"notes": "skip"}}
    plan = made(town, **rule)
    data = Dataset.open(town)
    facts = read_view(town, "some")
    for split in (None, "train", "val"):
        view = data.saved_view("some", split)
        fresh = data.view(FIELDS, split, rule["filter"], join=rule["join"])
        assert keys(view) == keys(fresh) != []
        assert view.shard_sizes == fresh.shard_sizes
        assert view.digest == fresh.digest
        assert [view.read(i) for i in range(len(view))] == [fresh.read(i) for i in range(len(fresh))]
        assert facts["splits"].get(split, facts["rows"]) == len(view)
        copy = pickle.loads(pickle.dumps(view))
        assert [copy.key(i) for i in (1, 0, len(copy) - 1)] == [view.key(i) for i in (1, 0, len(view) - 1)]
    assert facts["columns"] == {"base": plan.revisions["base"], "notes": "bbbbbbbbbb"}
    assert facts["base"] == plan.revisions["base"] and facts["revision"] == plan.revision
    assert sum(part["shards"] for part in facts["parts"]) == facts["shards"] == 5
    assert len(list(plan.folder.glob("*.parquet"))) == len(facts["parts"]) == -(-5 // thousand)


def test_the_same_inputs_give_the_same_view(town: Path, tmp_path: Path) -> None:
    first, again = made(town, filter="notes.score > 0.5"), made(town, filter="(notes.score)>0.5")
    assert first.revision == again.revision, "the spelling does not matter"
    elsewhere = Path(shutil.copytree(town, tmp_path / "elsewhere", ignore=lambda d, names: {"views"} & set(names)))
    made(elsewhere, filter="(notes.score)>0.5")
    assert tree(elsewhere / "views") == tree(town / "views"), "to the byte"
    others = [
        plan_view(job(town, **more), "some", "x").revision
        for more in (
            {"filter": "notes.score > 0.25"},
            {"filter": "notes.score > 0.5", "join": {"notes": "none"}},
            {"filter": "notes.score > 0.5", "split": "notes.group"},
            {"filter": "notes.score > 0.5", "fields": ["base.image"]},
            {"filter": "notes.score > 0.5", "buckets": {"sizes": [[64, 64]]}},
        )
    ]
    assert len({first.revision, *others}) == 6


def test_a_saved_view_pins_its_columns(town: Path) -> None:
    made(town, filter="notes.score > 0.5")
    data = Dataset.open(town)
    before, digest = keys(data.saved_view("some")), data.saved_view("some").digest
    add_notes(town, "cccccccccc", tweak=7)
    now = Dataset.open(town)
    assert now.column("notes").revision == "cccccccccc"
    pinned = now.saved_view("some")
    assert (keys(pinned), pinned.digest) == (before, digest)
    assert pinned.dataset.column("notes").revision == "bbbbbbbbbb"
    old = made(town, "old", filter="notes.score > 0.5", columns={"notes": "bbbbbbbbbb"})
    assert keys(now.saved_view("old")) == before
    made(town, filter="notes.score > 0.5")
    assert keys(now.saved_view("some")) != before, "built again, with the current column"
    assert keys(now.saved_view(f"some@{old.revision}")) == before, "older builds can be named"
    shutil.rmtree(column_folder(town, "notes", "bbbbbbbbbb"))
    with pytest.raises(UserError, match="notes: revision bbbbbbbbbb is no longer on disk"):
        now.saved_view("old")
    with pytest.raises(UserError, match=r"columns\.notes: no revision bbbbbbbbbb on disk; there are: cccccccccc"):
        plan_view(job(town, columns={"notes": "bbbbbbbbbb"}), "some", "views/some.toml")


def test_rows_that_are_added_later_do_not_enter_a_view(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {f"{number}.jpg": jpeg(seed=number) for number in range(8)})
    packed(folder_recipe(root), tmp_path / "out")
    plan = made(tmp_path / "out", fields=["base.image"], filter="width > 0")
    before = Dataset.open(tmp_path / "out").saved_view("some")
    seen, digest = keys(before), before.digest
    write_files(root, {f"{number}.jpg": jpeg(seed=number) for number in range(20, 30)})
    _, data = packed(folder_recipe(root), tmp_path / "out")
    after = data.saved_view("some")
    assert data.rows() == 18 and data.shards == 4
    assert data.column("base").revision == plan.revisions["base"], "the same revision has grown"
    assert (keys(after), after.digest, len(after.shard_sizes)) == (seen, digest, 2)
    assert [after.read(i) for i in range(len(after))] == [before.read(i) for i in range(len(before))]
    made(tmp_path / "out", fields=["base.image"], filter="width > 0")
    assert len(data.saved_view("some")) == 18


def test_a_column_made_anew_in_place_is_refused(town: Path) -> None:
    """Rows to be tried again, and rows taken down, change a shard under the same revision."""
    plan = made(town)
    add_notes(town, "bbbbbbbbbb", tweak=1)
    with pytest.raises(UserError, match=r"view some: column notes/bbbbbbbbbb has changed .*0 to 00000004 .*it again"):
        Dataset.open(town).saved_view("some")
    with pytest.raises(UserError, match="they changed since the job was submitted"):
        plan_again(job(town, name="some", columns=plan.revisions), plan.revision)
    assert made(town).revision != plan.revision
    assert len(Dataset.open(town).saved_view("some"))


def test_a_row_that_was_taken_down_is_in_no_view(town: Path) -> None:
    made(town, join={"notes": "none"})
    gone = keys(Dataset.open(town).view(["base.image"]))[3]
    owner = Owner.here("remove")
    carry_out(town, request(town, [gone], "asked for"), owner)
    with pytest.raises(UserError, match="has changed since the view was built"):
        Dataset.open(town).saved_view("some")
    made(town, join={"notes": "none", "base": "error"})
    data = Dataset.open(town)
    left = [key[:10] for key in keys(data.view(["base.image"]))]
    assert gone[:10] not in left and len(left) == 19
    for view in (data.saved_view("some"), data.view(FIELDS, join={"notes": "none", "base": "none"})):
        assert [key[:10] for key in keys(view)] == left


def test_a_build_that_was_stopped_goes_on(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_thousands(monkeypatch)
    plan = plan_view(job(town), "some", "x")
    looks = iter(range(100))
    assert not build(plan, range(5), stop=lambda: next(looks) == 3)
    assert [path.name for path in plan.folder.iterdir()] == ["00000.parquet"], "nothing half-made remains"
    assert views.missing(plan.folder, 5) == [2, 3, 4]
    with pytest.raises(UserError, match=r"00001\.parquet: missing"):
        view_build.merge(plan)
    with pytest.raises(UserError, match="no view some; there are: none"):
        Dataset.open(town).saved_view("some")
    reports: list[dict[str, Any]] = []
    assert build(plan, [2, 3, 4], report=reports.append)
    assert reports[-1]["done_shards"] == reports[-1]["shards"] == 3
    view_build.merge(plan)
    assert views.is_built(town, "some", plan.revision, 5)
    assert keys(Dataset.open(town).saved_view("some")) == keys(Dataset.open(town).view(FIELDS))


def test_damage_is_named(town: Path) -> None:
    plan = made(town)
    part = plan.folder / "00000.parquet"
    data = part.read_bytes()
    part.write_bytes(data[:-200])
    with pytest.raises(UserError, match=r"00000\.parquet: damaged .* build the view again"):
        len(Dataset.open(town).saved_view("some"))
    part.unlink()
    assert not views.is_built(town, "some", plan.revision, 5)
    with pytest.raises(UserError, match=r"00000\.parquet: damaged .*No such file"):
        len(Dataset.open(town).saved_view("some"))


def test_what_a_view_does_not_have_is_named(town: Path) -> None:
    made(town, filter='split == "train"')
    data = Dataset.open(town)
    for arguments, message in (
        (("none",), "no view none; there are: some"),
        (("some@0000000000",), "no view some@0000000000; its revisions are: "),
        (("some", "val"), "view some has no rows of split val; it has train"),
        (("some", None, ["base.label"]), "view some has no field base.label"),
    ):
        with pytest.raises(UserError, match=message):
            data.saved_view(*arguments)
    part = data.saved_view("some", fields=["base.image"])
    assert list(part.read(0)) == ["base.image"]
    assert keys(part) == keys(data.saved_view("some")) and part.digest != data.saved_view("some").digest


def test_a_view_without_splits(town: Path) -> None:
    made(town, split="")
    view = Dataset.open(town).saved_view("some")
    assert keys(view) == keys(Dataset.open(town).view(FIELDS)) and view.facts["splits"] == {}
    with pytest.raises(UserError, match="it has no splits at all"):
        Dataset.open(town).saved_view("some", "train")


def test_splits_of_another_column_partition_the_view(town: Path) -> None:
    made(town, split="notes.group")
    data, rows = Dataset.open(town), facts(town)
    for split in ("train", "val"):
        assert keys(data.saved_view("some", split)) == [r["key"] for r in rows if r["group"] == split]
    assert len(data.saved_view("some")) > sum(data.saved_view("some").facts["splits"].values()), "some have no split"


@pytest.mark.parametrize("buckets", [{"sizes": [[64, 32], [32, 64], [48, 48]]}, {"area": 4096, "step": 16}])
def test_buckets_are_those_of_the_order(tmp_path: Path, buckets: dict[str, Any]) -> None:
    town = _shapes(tmp_path / "shapes")
    made(town, fields=["base.image"], filter="width != 40", buckets=buckets)
    data = Dataset.open(town)
    for split in (None, "train"):
        view = data.saved_view("some", split)
        counted = AspectBuckets(data.view(["base.image"], split, "width != 40"), view.bucket_sizes)
        np.testing.assert_array_equal(view.bucket_counts, counted.bucket_counts)
        for shard in range(data.shards):
            np.testing.assert_array_equal(view.buckets_of(shard), counted.buckets_of(shard))
        expected = [int(bucket) for shard in range(data.shards) for bucket in counted.buckets_of(shard)]
        assert [view.bucket_of(i) for i in range(len(view))] == expected
        assert bucketed(view, view.bucket_sizes) is view and len(set(expected)) > 1
    facts = read_view(town, "some")
    assert sum(item["rows"] for item in facts["bucket_rows"]) == facts["rows"]
    plain = made(town, "plain", fields=["base.image"])
    assert plain.selection.buckets is None
    with pytest.raises(UserError, match="view plain has no buckets"):
        _ = data.saved_view("plain").bucket_counts


def _shapes(root: Path) -> Path:
    """Pictures of four shapes in three shards."""
    shapes = [(48, 32), (32, 48), (40, 40), (64, 16)]
    files = {f"{number}.jpg": jpeg(*shapes[number % 4], seed=number) for number in range(16)}
    packed(folder_recipe(write_files(root / "in", files)), root / "out")
    return root / "out"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"filter": "notes.scor > 1"}, r"views/some\.toml: filter: column notes has no scalar scor"),
        ({"fields": ["mask.rle"]}, r"views/some\.toml: mask\.rle is needed, but there is no column mask"),
        ({"split": "notes.score"}, r"views/some\.toml: split: notes\.score is of type float"),
        ({"join": {"nots": "skip"}}, r"views/some\.toml: join\.nots: no such column"),
        ({"join": {"notes": "drop"}}, r"views/some\.toml: join\.notes: "),
        ({"buckets": {"area": 4096, "sizes": [[8, 8]]}}, r"views/some\.toml: buckets: give either"),
        ({"fitler": "x"}, r"views/some\.toml: fitler: unknown key; did you mean filter"),
    ],
)
def test_a_wrong_file_is_refused_by_key(shared: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_view(job(shared, **more), "some", "views/some.toml")


def test_columns_with_other_keys_cannot_be_joined(town: Path) -> None:
    plan = plan_view(job(town), "some", "x")
    # As if another base had been pinned: same shards, other keys.
    other = Path(shutil.copytree(town, town.parent / "other", ignore=lambda d, names: {"notes", "views"} & set(names)))
    packed(city_recipe(shard_rows=4, source={"train": 15, "val": 5}), other)
    facts = json.loads(json.dumps(plan.facts))
    base = read_manifest(other)["columns"]["base"]
    shutil.copytree(column_folder(other, "base", base["revision"]), column_folder(town, "base", base["revision"]))
    facts["columns"]["base"] = base
    wrong = ViewPlan(town, "some", facts, plan.selection)
    with pytest.raises(UserError, match="has other keys than base/"):
        build(wrong, range(5))
