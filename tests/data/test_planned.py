"""Keys found in a plan without reading it: everything that reading all of it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_images import dice, folder_recipe, jpeg, opened_files, packed, write_files

from semiocity.data import planned
from semiocity.data.lease import Owner
from semiocity.data.listing import id_hash
from semiocity.data.plan import Plan, plan_folder
from semiocity.data.revisions import Revisions
from semiocity.data.shard import ShardReader
from semiocity.data.takedown import carry_out, remains, request
from semiocity.data.verify import verify


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Twenty-four pictures, eight of them added later, and two shards to a part at least."""
    files = {f"{i}.jpg": jpeg(seed=i) for i in range(24)}
    root = write_files(tmp_path / "in", dict(list(files.items())[:16]))
    packed(folder_recipe(root, shard_rows=3), tmp_path / "out")
    write_files(root, files)
    plan, _ = packed(folder_recipe(root, shard_rows=3), tmp_path / "out")
    assert len(plan.content["parts"]) == 2
    return tmp_path / "out"


def plan_of(dataset: Path) -> Plan:
    return Plan.open(dataset, next((dataset / "plans").glob("*/plan.json")).parent.name)


def test_shards_that_may_hold_a_key_are_few_and_hold_it(street: Path) -> None:
    plan = plan_of(street)
    for shard in range(plan.shards):
        for row in plan.rows(shard):
            found = planned.shards_of(plan, [row.key[:10]])
            assert shard in found and len(found) <= 4
    assert planned.names(plan, [id_hash("7")]) and not planned.names(plan, [id_hash("99"), id_hash("in/7")])
    assert planned.names(plan, [id_hash("99"), id_hash("23")])


def test_keys_that_begin_alike_lie_on_both_sides_of_a_border(tmp_path: Path) -> None:
    """Made by hand: hashes of which ten digits are equal are hard to come by."""
    random = dice()
    keys = sorted(f"{random.randrange(6):010x}-{random.randrange(10**6)}" for _ in range(60))
    content = dict(json.loads((_small(tmp_path) / "plan.json").read_text()))
    lines = [
        json.dumps([[k, k, {}, {}, "", {}, {}] for k in keys[i : i + 4]], separators=(",", ":"))
        for i in range(0, 60, 4)
    ]
    (plan_folder(tmp_path / "out", content["revision"]) / "plan.jsonl").write_text("\n".join(lines) + "\n")
    offsets = [sum(len(line) + 1 for line in lines[:i]) for i in range(len(lines))]
    plan = Plan(tmp_path / "out", {**content, "parts": [{"file": "plan.jsonl", "rows": 60, "offsets": offsets}]})
    for digits in {key[:10] for key in keys} | {"ffffffffff"}:
        really = {i for i in range(len(lines)) if any(k.startswith(digits) for k in keys[4 * i : 4 * i + 4])}
        assert really <= planned.shards_of(plan, [digits]).keys()


def _small(tmp_path: Path) -> Path:
    plan, _ = packed(folder_recipe(write_files(tmp_path / "in", {"a.jpg": jpeg()})), tmp_path / "out")
    return plan_folder(tmp_path / "out", plan.revision)


def test_a_quick_look_reads_neither_the_plan_nor_other_shards(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = Revisions(street)
    place = revisions.find(revisions.bases[0], [id_hash("7")])[id_hash("7")]
    with ShardReader(plan_of(street).path(place.shard)) as reader:
        key = reader.keys[place.row]
    carry_out(street, request(street, [key], "asked for it"), Owner.here("remove"))
    monkeypatch.setattr(Plan, "all_rows", None)
    monkeypatch.setattr(Plan, "rows", None)
    with opened_files() as names:
        assert verify(street, quick=True) == []
    parquets = {Path(name).name for name in names if name.endswith(".parquet") and str(street) in name}
    assert len(parquets) <= 4, "those shards alone that may hold the row"
    assert list(remains(street)) == []


def test_a_plan_that_still_names_a_row_is_found(street: Path) -> None:
    plan = plan_of(street)
    before = {path: path.read_bytes() for path in plan_folder(street, plan.revision).iterdir()}
    key = next(row.key for row in plan.all_rows() if row.entry is not None and row.entry.id == "20")
    carry_out(street, request(street, [key], "asked for it"), Owner.here("remove"))
    after = {path: path.read_bytes() for path in plan_folder(street, plan.revision).iterdir()}
    old = next(path for path in before if path not in after)
    old.write_bytes(before[old])
    assert [(where, "older list" in what) for where, what in remains(street)] == [(old, True)]
    old.unlink()
    for path, data in before.items():
        path.write_bytes(data)
    found = [(path.name, what) for path, what in remains(street) if isinstance(path, Path)]
    assert ("plan.json", "names a row that was taken down") in found
    assert [fault for fault in verify(street, quick=True) if "taken down" in fault.what]


def test_a_row_is_found_beside_one_that_was_taken_down_and_whose_hash_begins_alike(street: Path) -> None:
    """10⁹ rows have half a million pairs of them."""
    first, second = "n175561", "n804706"
    assert id_hash(first)[:10] == id_hash(second)[:10]
    root = street.parent / "in"
    write_files(root, {f"{first}.jpg": jpeg(seed=77), f"{second}.jpg": jpeg(seed=78)})
    packed(folder_recipe(root, shard_rows=3), street)
    revisions = Revisions(street)
    for name in (first, second):
        keys = [row.key for row in plan_of(street).all_rows() if row.entry is not None and row.entry.id == name]
        carry_out(street, request(street, keys, "asked for it"), Owner.here("remove"))
    assert list(remains(street)) == []
    assert not any(p.live for p in revisions.find(revisions.bases[0], [id_hash(first), id_hash(second)]).values())
    assert [path for path in street.rglob("*") if path.is_file() and jpeg(seed=78) in path.read_bytes()] == []
