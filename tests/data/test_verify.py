"""Every kind of damage is found and named, with the shard, the key where there is one, and what to do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import add_column, city_recipe, dice, folder_recipe, jpeg, opened_files, packed, write_files

from semiocity.cli import main
from semiocity.data import verify as verify_module
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, column_folder, merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.shard import Head, ShardReader, ShardWriter
from semiocity.data.state import TO_CATCH_UP
from semiocity.data.takedown import carry_out, request
from semiocity.data.verify import Fault, verify
from semiocity.errors import UserError


def shard(town: Path, column: str = "base", number: int = 1) -> ShardPath:
    return ShardPath(Dataset.open(town).column(column).folder, number)


def payload_at(path: ShardPath, row: int) -> tuple[int, int]:
    """Offset and length of the first field of a row."""
    with ShardReader(path) as reader:
        return reader.column("image.offset")[row], reader.column("image.length")[row]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def head_of(path: ShardPath) -> Head:
    """The head that a shard was written with."""
    receipt = json.loads(path.receipt.read_text())
    return Head(**{field.name: receipt[field.name] for field in dataclasses.fields(Head)})


def boundary_cut(town: Path) -> None:
    path = shard(town)
    offset, _ = payload_at(path, 3)
    path.tar.write_bytes(path.tar.read_bytes()[: offset - 512])


def boundary_cut_with_clean_end(town: Path) -> None:
    path = shard(town)
    offset, _ = payload_at(path, 3)
    path.tar.write_bytes(path.tar.read_bytes()[: offset - 512] + bytes(10240))


def cut_inside(town: Path) -> None:
    path = shard(town)
    offset, length = payload_at(path, 3)
    path.tar.write_bytes(path.tar.read_bytes()[: offset + length // 2])


def header_flip(town: Path) -> None:
    path = shard(town)
    flip(path.tar, payload_at(path, 3)[0] - 512 + 3)


def payload_flip(town: Path) -> None:
    path = shard(town)
    flip(path.tar, payload_at(path, 3)[0] + 7)


def missing_tar(town: Path) -> None:
    shard(town).tar.unlink()


def missing_shard(town: Path) -> None:
    for file in (shard(town).tar, shard(town).parquet, shard(town).receipt):
        file.unlink()


def missing_column_shard(town: Path) -> None:
    for file in (shard(town, "word").tar, shard(town, "word").parquet, shard(town, "word").receipt):
        file.unlink()


def index_flip(town: Path) -> None:
    flip(shard(town).parquet, shard(town).parquet.stat().st_size - 30)


def receipt_damaged(town: Path) -> None:
    shard(town).receipt.write_text("{")


def receipt_of_other_shard(town: Path) -> None:
    shard(town).receipt.write_bytes(shard(town, number=2).receipt.read_bytes())


def receipt_differs_from_manifest(town: Path) -> None:
    edit(shard(town).receipt, rows=5)


def key_in_one_column_only(town: Path) -> None:
    """The column's shard lacks a key, and everything else about it is in order."""
    path = shard(town, "word")
    keys = ShardReader(path).keys
    with ShardWriter(path, head_of(path)) as writer:
        for key in keys:
            if key != keys[3]:
                writer.add(key, {"text": ("txt", key.encode())}, {"letters": 1})
        writer.publish()


def same_key_in_two_shards(town: Path) -> None:
    """Shard 1 holds what shard 0 holds, and its receipt fits it."""
    source, target = shard(town, number=0), shard(town)
    target.tar.write_bytes(source.tar.read_bytes())
    target.parquet.write_bytes(source.parquet.read_bytes())
    target.receipt.write_text(json.dumps({**json.loads(source.receipt.read_text()), "shard": 1}))


def base_made_anew_otherwise(town: Path) -> None:
    """The base shard has other bytes than when the column was made, and is in order by itself."""
    path = shard(town)
    reader = ShardReader(path)
    rows = [(key, reader.read(i, "meta"), reader.scalars(i)) for i, key in enumerate(reader.keys)]
    with ShardWriter(path, head_of(path)) as writer:
        for key, meta, scalars in rows:
            writer.add(key, {"meta": ("json", meta or b"")}, scalars)
        writer.publish()


def manifest_of_column_missing(town: Path) -> None:
    (Dataset.open(town).column("word").folder / "manifest.json").unlink()


def end_cut(town: Path) -> None:
    """All samples are whole, but the blocks that close the tar are gone."""
    path = shard(town)
    last = path.tar.read_bytes().rstrip(b"\0")
    path.tar.write_bytes(last + bytes(-len(last) % 512))


def manifest_of_column_edited(town: Path) -> None:
    path = Dataset.open(town).column("word").folder / "manifest.json"
    edit(path, digest="0" * 64)


def dataset_manifest_miscounts(town: Path) -> None:
    edit(town / "manifest.json", files_seen=21)


def plan_missing(town: Path) -> None:
    (town / "plans" / Dataset.open(town).column("base").revision / "plan.json").unlink()


def shard_beyond_the_last(town: Path) -> None:
    (shard(town).parent / "00000009.tar").write_bytes(b"")


DAMAGES: list[tuple[Callable[[Path], None], str, bool]] = [
    (boundary_cut, "cut off", True),
    (boundary_cut_with_clean_end, "unexpected header", True),
    (cut_inside, "ends inside", True),
    (header_flip, "header", True),
    (payload_flip, "crc32", True),
    (missing_tar, "missing: 00000001.tar", False),
    (missing_shard, "missing: 00000001.tar, 00000001.parquet, 00000001.json", False),
    (missing_column_shard, "missing", False),
    (index_flip, "00000001.parquet", False),
    (receipt_damaged, "damaged JSON", False),
    (receipt_of_other_shard, "receipt and manifest differ", False),
    (receipt_differs_from_manifest, "differ in rows", False),
    (key_in_one_column_only, "key of base that this column lacks", True),
    (same_key_in_two_shards, "the same key", True),
    (base_made_anew_otherwise, "made from other bytes", False),
    (manifest_of_column_missing, "cannot be read", False),
    (end_cut, "no clean end", False),
    (manifest_of_column_edited, "its digest is not that of its shards", False),
    (dataset_manifest_miscounts, "files seen 21", False),
    (plan_missing, "cannot be read", False),
    (shard_beyond_the_last, "a shard that the plan does not have", False),
]


def missing_column(town: Path) -> None:
    shutil.rmtree(town / "columns" / "word")


def index_cut(town: Path) -> None:
    path = shard(town).parquet
    path.write_bytes(path.read_bytes()[:-1])


def compacted_receipts_flipped(town: Path) -> None:
    path = Dataset.open(town).shard_entries("word").path(0)
    flip(path, path.stat().st_size // 2)


def compacted_receipts_missing(town: Path) -> None:
    Dataset.open(town).shard_entries("word").path(0).unlink()


DAMAGES += [
    (missing_column, "cannot be read", False),
    (index_cut, "00000001.parquet has", False),
    (compacted_receipts_flipped, "compacted receipts cannot be read", False),
    (compacted_receipts_missing, "compacted receipts cannot be read", False),
]

UNSEEN_BY_QUICK = {header_flip, payload_flip, index_flip}
"""Sizes and receipts show nothing of these."""


def faults_of(town: Path) -> list[Fault]:
    return [fault for fault in verify(town) if fault.level == "fault"]


def test_nothing_is_wrong_with_a_good_dataset(town: Path) -> None:
    assert verify(town) == []
    assert verify(town, quick=True) == []


@pytest.mark.parametrize(("damage", "expected", "names_key"), DAMAGES, ids=[d[0].__name__ for d in DAMAGES])
def test_damage(own_town: Path, damage: Callable[[Path], None], expected: str, names_key: bool) -> None:
    wanted = ShardReader(shard(own_town)).keys[3]
    damage(own_town)
    faults = faults_of(own_town)
    matching = [fault for fault in faults if expected in fault.what]
    assert matching, [str(fault) for fault in faults]
    assert all(fault.remedy and fault.where for fault in faults)
    if names_key and damage is not same_key_in_two_shards:
        assert matching[0].key == wanted
        assert wanted in matching[0].where
    if matching[0].shard is not None and damage is not shard_beyond_the_last:
        assert matching[0].shard == 1
        assert "/00000001" in matching[0].where
    others = {fault.shard for fault in faults} - {1, 9, None}
    assert not others, "shards that are in order are not blamed"


def test_any_flipped_bit_is_found(own_town: Path) -> None:
    random = dice()
    for file in (shard(own_town).tar, shard(own_town).parquet):
        whole = file.read_bytes()
        for _ in range(6):
            data = bytearray(whole)
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            file.write_bytes(data)
            assert faults_of(own_town), "a flipped bit went unnoticed"
        file.write_bytes(whole)
    assert verify(own_town) == []


def test_an_index_that_names_what_no_tar_can_hold(own_town: Path) -> None:
    """As a flipped bit in a length does; keys and sizes may have become null, too."""
    path = shard(own_town)
    table = pq.read_table(path.parquet)
    for name, value in (("image.length", 578721382704613590), ("image.length", None), ("key", None)):
        column = table.schema.field(name)
        values = [value, *table.column(name).to_pylist()[1:]]
        changed = table.set_column(table.column_names.index(name), column.name, pa.array(values, column.type))
        pq.write_table(changed, path.parquet)
        assert any("parquet is damaged" in fault.what for fault in faults_of(own_town)), name


def test_quick_finds_what_sizes_and_receipts_show(own_town: Path) -> None:
    cut_inside(own_town)
    missing_column_shard(own_town)
    faults = verify(own_town, quick=True)
    assert {(fault.column, fault.shard) for fault in faults} == {("base", 1), ("word", 1)}


@pytest.mark.parametrize("damage", [d[0] for d in DAMAGES], ids=[d[0].__name__ for d in DAMAGES])
def test_quick_finds_everything_that_sizes_and_receipts_show(own_town: Path, damage: Callable[[Path], None]) -> None:
    damage(own_town)
    found = [fault for fault in verify(own_town, quick=True) if fault.level == "fault"]
    assert bool(found) == (damage not in UNSEEN_BY_QUICK), [str(fault) for fault in found]


def test_quick_opens_one_file_a_thousand_shards_of_a_column(own_town: Path) -> None:
    """Once everything is older than a moment; and what is younger is looked at."""
    for folder in own_town.glob("columns/*/*/"):
        for path in [*folder.glob("*/*"), *folder.glob("*/")]:
            os.utime(path, (1e9, 1e9))
        merge(own_town, folder.parent.name, folder.name)
    with opened_files() as opened:
        assert verify(own_town, quick=True) == []
    assert not [name for name in opened if "/00000/" in name]
    assert len([name for name in opened if "/receipts." in name]) == 2
    receipt = shard(own_town).receipt
    receipt.write_text(receipt.read_text().replace("train", "trail"))
    with opened_files() as opened:
        assert [fault.what for fault in verify(own_town, quick=True)] == ["receipt and manifest differ in splits"]
    assert [name for name in opened if "/00000/" in name] == [str(receipt)]


def test_processes_find_what_one_finds(own_town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "UNIT_SHARDS", 1)
    payload_flip(own_town)
    missing_column_shard(own_town)
    same_key = shard(own_town, number=3)
    source = shard(own_town, number=0)
    for name in ("tar", "parquet"):
        getattr(same_key, name).write_bytes(getattr(source, name).read_bytes())
    found = verify(own_town)
    assert {(fault.column, fault.shard) for fault in found} >= {("base", 1), ("base", 3), ("word", 1)}
    assert verify(own_town, workers=2) == found


def test_parts_cover_every_thousand_once() -> None:
    random = dice()
    for _ in range(50):
        thousands, parts = random.randrange(40), random.randrange(1, 12)
        covered = [n for i in range(parts) for n in verify_module._part(range(thousands), (i, parts))]
        assert covered == list(range(thousands))


def test_parts_on_the_command_line(town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(town), "--part", "1/2", "--workers", "1"]) == 0
    assert "part 1 of 2" in capsys.readouterr().out
    for wrong in ("2/2", "half", "0/0"):
        assert main(["verify", str(town), "--part", wrong]) == 2


def test_a_key_among_rows_that_were_added_later(tmp_path: Path) -> None:
    """New rows begin anew with the first keys; a key that older shards have is found all the same."""
    root = write_files(tmp_path / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(8)})
    packed(folder_recipe(root), tmp_path / "out")
    write_files(root, {f"{i}.jpg": jpeg(seed=i) for i in range(20, 26)})
    plan, _ = packed(folder_recipe(root), tmp_path / "out")
    assert verify(tmp_path / "out") == []
    source, target = plan.path(0), plan.path(2)
    target.tar.write_bytes(source.tar.read_bytes())
    target.parquet.write_bytes(source.parquet.read_bytes())
    target.receipt.write_text(json.dumps({**json.loads(source.receipt.read_text()), "shard": 2}))
    merge(tmp_path / "out", "base", plan.revision)
    faults = faults_of(tmp_path / "out")
    assert {(fault.shard, fault.what) for fault in faults} == {(2, "the same key as in shard 00000000")}
    assert [fault.key for fault in faults] == ShardReader(source).keys


def test_a_column_that_lacks_added_shards_is_one_fault(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {f"{i}.jpg": jpeg(seed=i) for i in range(8)})
    packed(folder_recipe(root), tmp_path / "out")
    add_column(tmp_path / "out")
    write_files(root, {"20.jpg": jpeg(seed=20)})
    packed(folder_recipe(root), tmp_path / "out")
    for quick in (True, False):
        assert [fault.remedy for fault in verify(tmp_path / "out", quick)] == [TO_CATCH_UP]


def test_damage_where_a_row_was_taken_down(own_town: Path) -> None:
    """The search for what is left of the row meets the damage first."""
    key = ShardReader(shard(own_town)).keys[3]
    carry_out(own_town, request(own_town, [key], "asked for"), Owner.here())
    assert verify(own_town) == []
    index_cut(own_town)
    assert {fault.what.split(" (")[0] for fault in verify(own_town)} >= {
        "cannot tell whether rows that were taken down are gone",
        "00000001.parquet cannot be read",
    }


def test_leftovers_are_notes(own_town: Path) -> None:
    (shard(own_town).parent / ".00000001.tar.abc.tmp").touch()
    shard(own_town).lease.write_text("{}")
    notes = verify(own_town)
    assert {note.level for note in notes} == {"note"}
    assert {note.where.rpartition("/")[2] for note in notes} == {".00000001.tar.abc.tmp", "00000001.lease"}


def test_the_remedy_mends_it(own_town: Path) -> None:
    payload_flip(own_town)
    fault = faults_of(own_town)[0]
    receipt = shard(own_town).receipt
    assert f"remove {receipt} and run the job" in fault.remedy
    receipt.unlink()
    plan = make_plan(city_recipe(), own_town)
    pack_shards(plan, range(plan.shards), Owner.here())
    merge(own_town, "base", plan.revision)
    assert verify(own_town) == []


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        verify(tmp_path)
    assert column_folder(tmp_path, "base", "x") == tmp_path / "columns" / "base" / "x"
