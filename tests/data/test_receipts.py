"""Receipts by the thousand: read lazily, opened again only where something is new, never half written."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from make_images import add_column, dice, opened_files, tree

from semiocity.data import receipts
from semiocity.data.columns import Dataset
from semiocity.data.layout import ShardPath, column_folder, thousand_folder
from semiocity.data.manifest import merge, read_column_manifest, shard_entries
from semiocity.data.receipts import ShardEntries, compact, entry_of, latest, receipt_of
from semiocity.errors import UserError
from semiocity.files import json_bytes, write_json


def receipt(shard: int, **changes: object) -> dict[str, object]:
    """A made-up receipt of the column caption."""
    return {
        "format": 2,
        "column": "caption",
        "revision": "cccccccccc",
        "shard": shard,
        "rows": 10 + shard % 3,
        "bytes": 10240,
        "sha256": f"{shard:064x}",
        "parquet_bytes": 500,
        "parquet_sha256": f"{shard:064x}",
        "keys_digest": f"{shard + 1:064x}",
        "splits": {"train": 5} if shard % 2 else {"train": 4, "val": 1},
        "parents": {"base": {"revision": "bbbbbbbbbb", "sha256": f"{shard:064x}"}},
        "stage": {"name": "caption", "version": 1, "args": {}},
        "model": None,
        "execution": {"device": "cpu", "dtype": "float32", "batch": 1 + shard % 2},
        "fields": {"text": "txt"},
        "scalars": {},
        "tombstones": {"permanent": shard % 5, "removed": 0, "retry": 0},
        "rejected": [],
        **changes,
    }


def column(folder: Path, shards: list[int], age_s: float = 100) -> Path:
    """Receipts of some shards, `age_s` old, without tars; returns the revision's folder."""
    revision = column_folder(folder, "caption", "cccccccccc")
    for shard in shards:
        write_json(ShardPath(revision, shard).receipt, receipt(shard))
    settle(revision, age_s)
    return revision


def settle(revision: Path, age_s: float = 100) -> None:
    """Make everything look as if it had last changed so long ago."""
    then = time.time() - age_s
    for path in revision.glob("[0-9]*/*"):
        os.utime(path, (then, then))
    for path in revision.glob("[0-9]*/"):
        os.utime(path, (then, then))


def touch_anew(path: ShardPath, content: dict[str, object]) -> None:
    """Replace a receipt as a stage would."""
    path.receipt.unlink(missing_ok=True)
    write_json(path.receipt, content)


def test_entries_are_what_the_receipts_say(tmp_path: Path) -> None:
    revision = column(tmp_path, [0, 1, 2, 999])
    thousand = compact(revision, 0, [0, 1, 2, 999])
    for i, shard in enumerate([0, 1, 2, 999]):
        assert thousand.entry(i) == entry_of(receipt(shard))
        assert receipt_of(thousand, i) == receipt(shard)
        assert len(json_bytes(receipt(shard))) == thousand.facts["receipt_bytes"][i]
    line = thousand.line()
    assert (line["shards"], line["rows"], line["splits"]) == (4, 10 + 11 + 12 + 10, {"train": 18, "val": 2})
    again, stamp = latest(revision, 0)
    assert again == thousand
    assert stamp == thousand_folder(revision, 0).stat().st_mtime_ns


def test_only_new_receipts_are_opened(tmp_path: Path) -> None:
    shards = list(range(40))
    revision = column(tmp_path, shards)
    compact(revision, 0, shards)
    with opened_files() as opened:
        compact(revision, 0, shards)
    assert not [name for name in opened if "/00000/" in name], "nothing has changed"
    random = dice()
    changed = sorted(random.sample(shards, 3))
    for shard in changed:
        touch_anew(ShardPath(revision, shard), receipt(shard, rows=99))
    with opened_files() as opened:
        thousand = compact(revision, 0, shards)
    assert sorted(int(Path(name).stem) for name in opened if "/00000/" in name) == changed
    assert thousand.facts["rows"] == [99 if shard in changed else 10 + shard % 3 for shard in shards]
    with opened_files() as opened:
        compact(revision, 0, shards, reread=True)
    assert len([name for name in opened if "/00000/" in name]) == 40


def test_a_folder_that_changed_a_moment_ago_is_not_trusted(tmp_path: Path) -> None:
    """A receipt that is replaced within a tick of the clock changes no time, and here not even a size."""
    revision = column(tmp_path, [0, 1], age_s=0)
    compact(revision, 0, [0, 1])
    folder = thousand_folder(revision, 0).stat()
    touch_anew(ShardPath(revision, 1), receipt(1, rows=12))
    os.utime(ShardPath(revision, 1).receipt, ns=(folder.st_mtime_ns, folder.st_mtime_ns))
    os.utime(thousand_folder(revision, 0), ns=(folder.st_mtime_ns, folder.st_mtime_ns))
    assert compact(revision, 0, [0, 1]).facts["rows"] == [10, 12]


def test_a_clock_that_went_backwards_is_not_trusted(tmp_path: Path) -> None:
    revision = column(tmp_path, [0, 1])
    compact(revision, 0, [0, 1])
    touch_anew(ShardPath(revision, 1), receipt(1, rows=12))
    settle(revision, age_s=500)
    assert compact(revision, 0, [0, 1]).facts["rows"] == [10, 12]


def test_shards_that_went_and_came_are_noticed(tmp_path: Path) -> None:
    revision = column(tmp_path, [0, 1, 2])
    compact(revision, 0, [0, 1, 2])
    ShardPath(revision, 1).receipt.unlink()
    settle(revision, 50)
    assert compact(revision, 0, [0, 2]).shards == [0, 2]
    write_json(ShardPath(revision, 1).receipt, receipt(1))
    assert compact(revision, 0, [0, 1, 2]).shards == [0, 1, 2]


def damaged(path: Path) -> None:
    path.write_text("{")


def of_another_shard(path: Path) -> None:
    write_json(path, receipt(2))


def of_another_stage(path: Path) -> None:
    write_json(path, receipt(1, stage={"name": "caption", "version": 2, "args": {}}))


def of_another_parent(path: Path) -> None:
    write_json(path, receipt(1, parents={"base": {"revision": "other", "sha256": "0"}}))


def without_rows(path: Path) -> None:
    content = receipt(1)
    del content["rows"]
    write_json(path, content)


def of_format_1(path: Path) -> None:
    write_json(path, receipt(1, format=1))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (damaged, "damaged JSON"),
        (of_another_shard, "not the receipt of"),
        (of_another_stage, "its stage differs"),
        (of_another_parent, "made from other parents"),
        (without_rows, "'rows' missing"),
        (of_format_1, "semiocity upgrade"),
    ],
)
def test_a_receipt_that_does_not_fit_is_named(tmp_path: Path, spoil: Callable[[Path], None], expected: str) -> None:
    revision = column(tmp_path, [0, 1])
    path = ShardPath(revision, 1).receipt
    spoil(path)
    with pytest.raises(UserError, match=expected) as error:
        compact(revision, 0, [0, 1])
    assert str(path) in str(error.value)
    assert not list(revision.glob("receipts.*"))


def many(folder: Path, shards: list[int]) -> ShardEntries:
    """Entries over several thousands."""
    revision = column(folder, shards)
    lines = []
    for number in sorted({shard // 1000 for shard in shards}):
        lines.append(compact(revision, number, [shard for shard in shards if shard // 1000 == number]).line())
    write_json(revision / "manifest.json", {"format": 2, "digest": "d", "thousands": lines})
    return ShardEntries(revision, {"digest": "d", "thousands": lines})


def test_entries_are_a_sequence_read_by_the_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "FOLDER_SHARDS", 1000)
    monkeypatch.setattr(receipts, "KEPT", 2)
    shards = [*range(3), *range(1000, 1003), *range(2000, 2002), 4000]
    entries = many(tmp_path, shards)
    assert len(entries) == 9
    with opened_files() as opened:
        assert [entry["shard"] for entry in entries] == shards
    assert len([name for name in opened if "receipts." in name]) == 4
    assert [entries[i]["shard"] for i in range(-9, 9)] == shards * 2
    assert [entry["shard"] for entry in entries[2:5]] == shards[2:5]
    for i in (9, -10):
        with pytest.raises(IndexError):
            entries[i]
    third, none = entries.thousand(2), entries.thousand(3)
    assert none is None and third is not None and third.shards == [2000, 2001]
    assert [t.number for t in entries.thousands(only=lambda line: line["thousand"] % 2 == 0)] == [0, 2, 4]
    assert len(entries._kept) == 2, "memory does not grow with the column"
    copy = pickle.loads(pickle.dumps(entries))
    assert copy[8] == entries[8] and not pickle.loads(pickle.dumps(entries))._kept


def test_a_damaged_or_missing_file_says_what_makes_it_anew(tmp_path: Path) -> None:
    entries = many(tmp_path, [0, 1])
    file = entries.path(0)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"10240", b"10241"))
    with pytest.raises(UserError, match=r"damaged.*semiocity repair .* --apply"):
        entries[0]
    file.unlink()
    with pytest.raises(UserError, match=r"no such file.*semiocity repair .* --apply"):
        entries[0]
    file.write_bytes(whole)
    assert entries[0]["bytes"] == 10240


def test_a_reader_outlives_a_merge_that_changes_no_sample(own_town: Path) -> None:
    reader = Dataset.open(own_town).shard_entries("word")
    path = ShardPath(reader.folder, 1).receipt
    content = json.loads(path.read_text())
    content["execution"]["batch"] = 2
    path.write_text(json.dumps(content))
    merge(own_town, "word", "aaaaaaaaaa")
    assert reader[1]["execution"]["batch"] == 2
    other = Dataset.open(own_town).shard_entries("word")
    add_column(own_town)  # without the tombstone: other bytes
    with pytest.raises(UserError, match="merged anew meanwhile"):
        other[0]


def test_a_merge_leaves_nothing_of_the_one_before(own_town: Path) -> None:
    folder = column_folder(own_town, "word", "aaaaaaaaaa")
    before = {path.name for path in folder.glob("receipts.*")}
    add_column(own_town)
    after = {path.name for path in folder.glob("receipts.*")}
    assert len(before) == len(after) == 1 and before != after


def test_rejections_lie_beside_and_go_into_one_list(own_town: Path) -> None:
    dataset = Dataset.open(own_town)
    revision = dataset.column("base").revision
    rejected = {1: ["x", "y"], 3: ["z"]}
    for shard, names in rejected.items():
        path = ShardPath(dataset.column("base").folder, shard).receipt
        items = [{"id": name, "reason": "image_damaged", "detail": "made up"} for name in names]
        path.write_text(json.dumps({**json.loads(path.read_text()), "rejected": items}))
    with pytest.raises(UserError, match="do not add up"):
        merge(own_town, "base", revision)
    plan = own_town / "plans" / revision / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "files_seen": 23}))
    assert merge(own_town, "base", revision)["rejected"] == {"image_damaged": 3}
    lines = (dataset.column("base").folder / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["x", "y", "z"]
    thousand = shard_entries(own_town, "base", revision).thousand(0)
    assert thousand is not None and thousand.line()["rejected"] == {"image_damaged": 3}


def test_the_manifest_of_a_column_does_not_grow_with_its_shards(tmp_path: Path) -> None:
    few, lot = many(tmp_path / "few", [0, 1]), many(tmp_path / "lot", list(range(300)))
    sizes = [(entries.folder / "manifest.json").stat().st_size for entries in (few, lot)]
    assert abs(sizes[0] - sizes[1]) < 20


def test_compacting_is_the_same_for_whoever_does_it(own_town: Path) -> None:
    manifest = read_column_manifest(own_town, "word", "aaaaaaaaaa")
    folder = column_folder(own_town, "word", "aaaaaaaaaa")
    before = tree(own_town)
    for path in folder.glob("receipts.*"):
        path.unlink()
    compact(folder, 0, [0, 1, 2, 3])  # an array task, before the merge
    merge(own_town, "word", "aaaaaaaaaa")
    assert tree(own_town) == before
    assert read_column_manifest(own_town, "word", "aaaaaaaaaa") == manifest
