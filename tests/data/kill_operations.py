"""What kill_points.py does to datasets, how it prepares them, and what must hold after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from make_images import add_column, city_recipe, packed, tree

from semiocity.data.columns import Dataset
from semiocity.data.layout import ShardPath, column_folder
from semiocity.data.lease import Owner
from semiocity.data.leftovers import leftovers
from semiocity.data.manifest import merge, read_manifest
from semiocity.data.pack import pack_shard, pack_shards
from semiocity.data.plan import Plan, make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.repair import repair
from semiocity.data.upgrade import upgrade
from semiocity.data.verify import verify
from semiocity.errors import UserError
from semiocity.launch.garbage import collect

ASSET = Path(__file__).parents[1] / "assets" / "format-1.tar.gz"
REVISION = "aaaaaaaaaa"


class Operation(NamedTuple):
    """`run` and `check` raise when something is wrong; each gets the dataset's folder."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    check: Callable[[Path], None]


def undisturbed_tree(folder: Path) -> dict[str, str]:
    """Everything but what the dead leave: name → sha256."""
    left = {str(path.relative_to(folder)) for path in leftovers(folder, grace_s=-1)}
    found = {name: data for name, data in tree(folder).items() if not name.endswith((".tmp", ".lease"))}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name not in left}


def receipts_hold(dataset: Path) -> None:
    """No receipt vouches for anything but whole files."""
    for receipt in dataset.glob("columns/*/*/0*/0*.json"):
        facts = json.loads(receipt.read_text())
        for suffix, name in ((".tar", "sha256"), (".parquet", "parquet_sha256")):
            file = receipt.with_suffix(suffix)
            assert hashlib.sha256(file.read_bytes()).hexdigest() == facts[name], f"{receipt} lies about {file.name}"


def readable(dataset: Path) -> None:
    """The dataset opens, and every shard that its manifests list is told of."""
    opened = Dataset.open(dataset)
    for name in opened.columns:
        assert len(list(opened.shard_entries(name))) == opened.shards


def sound(dataset: Path) -> None:
    faults = [str(fault) for fault in verify(dataset) if fault.level == "fault"]
    assert not faults, faults


# ---------------------------------------------------------------- packing


def city() -> Recipe:
    return city_recipe(source={"train": 3, "val": 1}, shard_rows=2)


def _planned(dataset: Path) -> None:
    make_plan(city(), dataset)


def _plan(dataset: Path) -> Plan:
    return Plan.open(dataset, next((dataset / "plans").iterdir()).name)


def _pack(dataset: Path) -> None:
    pack_shards(_plan(dataset), [1], Owner.here())


def _older_shard(dataset: Path) -> None:
    """A shard of other bytes, with a receipt that fits them, where the new one goes."""
    _planned(dataset)
    _pack(dataset)
    path = _plan(dataset).path(1)
    tar, parquet = path.tar.read_bytes() + bytes(512), path.parquet.read_bytes() + b"older"
    sums = {"sha256": hashlib.sha256(tar).hexdigest(), "parquet_sha256": hashlib.sha256(parquet).hexdigest()}
    path.tar.write_bytes(tar)
    path.parquet.write_bytes(parquet)
    path.receipt.write_text(json.dumps({**json.loads(path.receipt.read_text()), **sums}))


def _replace(dataset: Path) -> None:
    plan = _plan(dataset)
    pack_shard(plan, 1, plan.path(1))


# ---------------------------------------------------------------- merging


def _town(dataset: Path) -> None:
    packed(city(), dataset)
    add_column(dataset, revision=REVISION)


def _unmerged(dataset: Path) -> None:
    _town(dataset)
    folder = column_folder(dataset, "word", REVISION)
    for path in [*folder.glob("receipts.*"), folder / "manifest.json", folder.parent / "current.json"]:
        path.unlink()
    merge(dataset, "base", Dataset.open(dataset).column("base").revision)


def _merge(dataset: Path) -> None:
    merge(dataset, "word", REVISION)


def _made_anew(dataset: Path) -> None:
    """A shard that has other bytes than those that were merged."""
    _town(dataset)
    merged = [dataset / "manifest.json", *column_folder(dataset, "word", REVISION).glob("*.json")]
    before = {path: path.read_bytes() for path in merged}
    add_column(dataset, revision=REVISION, failing=(Dataset.open(dataset).reader("base", 1).keys[0],))
    for path in column_folder(dataset, "word", REVISION).glob("receipts.*"):
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)


# ---------------------------------------------------------------- upgrading, collecting, repairing


def _format_1(dataset: Path) -> None:
    with tarfile.open(ASSET) as tar:
        tar.extractall(dataset.parent, filter="data")
    (dataset.parent / "town").rename(dataset)


def _old_or_sound(dataset: Path) -> None:
    try:
        read_manifest(dataset)
    except UserError as error:
        assert "semiocity upgrade" in str(error)
    else:
        sound(dataset)


def _with_garbage(dataset: Path) -> None:
    packed(city_recipe(source={"train": 3, "val": 1, "seed": 5}, shard_rows=2), dataset)
    _town(dataset)
    add_column(dataset, revision="bbbbbbbbbb")
    for path in (dataset / ".manifest.json.x.tmp", dataset / "columns" / "word" / ".gone.x" / "00000" / "a.tar"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _collect(dataset: Path) -> None:
    now = time.time
    time.time = lambda: now() + 3 * 86_400
    try:
        collect(dataset, dataset.parent / "runs", apply=True)
    finally:
        time.time = now


def _broken(dataset: Path) -> None:
    """An index, a receipt and manifests are lost, a tar is damaged."""
    _town(dataset)
    base = Dataset.open(dataset).column("base").folder
    word = column_folder(dataset, "word", REVISION)
    ShardPath(base, 0).parquet.unlink()
    ShardPath(word, 0).receipt.unlink()
    damaged = ShardPath(word, 1).tar
    damaged.write_bytes(damaged.read_bytes()[:-512])
    (dataset / "manifest.json").unlink()


def _repair(dataset: Path) -> None:
    repair(dataset, apply=True)


def _only_known_damage(dataset: Path) -> None:
    copy = dataset.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(dataset, copy)
    word = column_folder(copy, "word", REVISION)
    ShardPath(word, 1).receipt.unlink(missing_ok=True)
    parquet = ShardPath(next(iter((copy / "columns" / "base").glob("*/"))), 0)
    if not parquet.parquet.exists():
        parquet.receipt.unlink()
    receipts_hold(copy)


OPERATIONS: dict[str, Operation] = {
    "pack-fresh": Operation(_planned, _pack, receipts_hold),
    "pack-replace": Operation(_older_shard, _replace, receipts_hold),
    "merge": Operation(_unmerged, _merge, sound),
    "merge-again": Operation(_made_anew, _merge, readable),
    "upgrade": Operation(_format_1, upgrade, _old_or_sound),
    "gc": Operation(_with_garbage, _collect, sound),
    "repair": Operation(_broken, _repair, _only_known_damage),
}
