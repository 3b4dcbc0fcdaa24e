"""Plans and packing: the same bytes whatever happens around them, and nothing lost whatever happens to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from make_images import add_column, city_recipe, dice, folder_recipe, jpeg, packed, planned, png, tree

from semiocity.data import manifest as manifest_module
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import FORMAT, column_folder, merge, missing, read_manifest, read_receipt
from semiocity.data.pack import pack_shards
from semiocity.data.plan import Plan, make_plan
from semiocity.data.recipe import load_recipe
from semiocity.data.sources.folder import FolderSource
from semiocity.data.verify import verify
from semiocity.errors import UserError

HERE = Path(__file__).parent

PACK = """
import os, sys
os.umask(int(sys.argv[3], 8))
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from make_images import folder_recipe, packed
packed(folder_recipe(Path(sys.argv[1]), image={"resize": "crop", "size": [24, 16]}), Path(sys.argv[2]))
"""


def pictures(root: Path, count: int = 9) -> Path:
    for i in range(count):
        path = root / f"street {i % 3}" / f"picture.{i}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed=i) if i % 2 else jpeg(seed=i))
    return root


def shard_files(folder: Path) -> dict[str, bytes]:
    """The files of a dataset that must not depend on anything but the recipe and the source."""
    return {name: data for name, data in tree(folder).items() if not name.endswith("plan.json")}


def made_by_packing(plan: Plan, shards: Iterable[int]) -> list[int]:
    """Pack, and say which of the shards were made by that."""
    before = set(missing(plan.folder, plan.shards))
    reports: list[dict[str, object]] = []
    assert pack_shards(plan, list(shards), Owner.here(), report=reports.append)
    made = sorted(before - set(missing(plan.folder, plan.shards)))
    assert len([report for report in reports if "rows" in report]) == len(made)
    return made


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_same_bytes_whatever_the_environment(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    settings = [
        ("022", {"TZ": "UTC", "USER": "ada", "PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8"}),
        ("077", {"TZ": "Asia/Tokyo", "USER": "grace", "LOGNAME": "grace", "PYTHONHASHSEED": "2", "LC_ALL": "C"}),
    ]
    made = []
    for number, (umask, environment) in enumerate(settings):
        result = run(PACK, root, tmp_path / str(number), umask, HERE, **environment)
        assert result.returncode == 0, result.stderr
        made.append(shard_files(tmp_path / str(number)))
    assert made[0] == made[1]
    assert any(name.endswith(".tar") for name in made[0])
    shard = next((tmp_path / "0").rglob("*.tar"))
    assert shard.stat().st_mode & 0o777 == 0o644
    assert next((tmp_path / "1").rglob("*.tar")).stat().st_mode & 0o777 == 0o600
    assert next((tmp_path / "0").rglob("0*.json")).stat().st_mode & 0o777 == 0o644


def test_plan_is_the_same_wherever_the_source_lies(tmp_path: Path) -> None:
    first = make_plan(folder_recipe(pictures(tmp_path / "a")), tmp_path / "one")
    again = make_plan(folder_recipe(tmp_path / "a"), tmp_path / "one")
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = make_plan(folder_recipe(tmp_path / "moved"), tmp_path / "one")
    assert first.revision == again.revision == moved.revision
    source = Plan.open(tmp_path / "one", first.revision).recipe.source
    assert isinstance(source, FolderSource) and source.root == tmp_path / "moved"
    assert len(list((tmp_path / "one" / "plans").iterdir())) == 1, "nothing is left of planning twice"
    (tmp_path / "moved" / "street 0" / "picture.0.jpg").write_bytes(jpeg(40, 30))
    assert make_plan(folder_recipe(tmp_path / "moved"), tmp_path / "one").revision != first.revision


def test_keys_ascend_through_all_shards(tmp_path: Path) -> None:
    plan = make_plan(city_recipe(), tmp_path)
    keys = [row.key for shard in range(plan.shards) for row in plan.rows(shard)]
    assert keys == sorted(set(keys))
    assert len(keys) == plan.rows_planned == plan.files_seen == 20
    assert [len(plan.rows(shard)) for shard in range(plan.shards)] == [6, 6, 6, 2]


def test_shards_are_cut_by_bytes_too(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    most = max(path.stat().st_size for path in root.rglob("*.*")) * 2
    plan = make_plan(folder_recipe(root, shard_mb=most / 1e6), tmp_path / "out")
    sizes = [sum(sum(entry.sizes.values()) for entry in planned(plan, shard)) for shard in range(plan.shards)]
    assert max(sizes) <= most
    assert all(a + next_row > most for a, next_row in zip(sizes, first_rows(plan)[1:])), "a shard is left early"


def first_rows(plan: Plan) -> list[int]:
    return [sum(planned(plan, shard)[0].sizes.values()) for shard in range(plan.shards)]


def test_packing_again_makes_only_what_is_missing(own_town: Path) -> None:
    before = tree(own_town)
    plan = make_plan(city_recipe(), own_town)
    assert made_by_packing(plan, range(plan.shards)) == []
    plan.path(1).parquet.unlink()
    plan.path(2).receipt.unlink()
    assert missing(plan.folder, plan.shards) == [1, 2]
    assert made_by_packing(plan, range(plan.shards)) == [1, 2]
    merge(own_town, "base", plan.revision)
    assert tree(own_town) == before


def test_a_shard_that_somebody_works_on_is_left_alone(tmp_path: Path) -> None:
    plan = make_plan(city_recipe(), tmp_path)
    with lease(plan.path(1).lease, Owner("another", 0, 0, "elsewhere", 1)) as held:
        assert held
        assert made_by_packing(plan, [0, 1]) == [0]
    assert missing(plan.folder, plan.shards) == [1, 2, 3]


def test_stop_leaves_between_shards(tmp_path: Path) -> None:
    plan = make_plan(city_recipe(), tmp_path)
    answers = iter([False, False, True])
    assert not pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: next(answers))
    assert missing(plan.folder, plan.shards) == [2, 3]


PACK_LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from semiocity.data.lease import Owner
from semiocity.data.pack import pack_shard, pack_shards
from semiocity.data.plan import Plan
plan = Plan.open(Path(sys.argv[1]), sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
try:
    pack_shard(plan, 0, plan.path(0))
except OSError as error:
    print("OSError", error.errno)
"""


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    plan, _ = packed(city_recipe(), tmp_path)
    before = tree(tmp_path)
    size = plan.path(0).tar.stat().st_size
    random = dice()
    for limit in (0, 1000, random.randrange(size), size - 1, plan.path(0).parquet.stat().st_size // 2):
        result = run(PACK_LIMITED, tmp_path, plan.revision, HERE, limit)
        assert result.stdout.startswith("OSError"), result.stdout + result.stderr
        assert tree(tmp_path) == before, f"a file of at most {limit} bytes"


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    plan = make_plan(folder_recipe(root), tmp_path / "out")
    victim = root / planned(plan, 0)[0].files["image"]
    whole = victim.read_bytes()
    victim.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="no longer has") as error:
        pack_shards(plan, [0], Owner.here())
    assert victim.name in str(error.value)
    victim.unlink()
    with pytest.raises(UserError, match="is gone"):
        pack_shards(plan, [0], Owner.here())
    assert missing(plan.folder, plan.shards) == [0, 1]
    assert not [name for name in tree(tmp_path / "out") if name.endswith((".tmp", ".lease"))]
    victim.write_bytes(whole)
    assert pack_shards(plan, [0], Owner.here())


def test_merge_wants_every_shard_and_can_be_repeated(own_town: Path) -> None:
    dataset = Dataset.open(own_town)
    revision = dataset.column("base").revision
    before = tree(own_town)
    for _ in range(2):
        merge(own_town, "base", revision)
        merge(own_town, "word", "aaaaaaaaaa")
    assert tree(own_town) == before
    plan = Plan.open(own_town, revision)
    plan.path(3).receipt.unlink()
    with pytest.raises(UserError, match=r"1 of 4 shards are missing \(00000003\)"):
        merge(own_town, "base", revision)
    assert merge(own_town, "base", revision, partial=True)["shards"] == 3


def test_two_columns_merged_at_the_same_time(tmp_path: Path) -> None:
    packed(city_recipe(), tmp_path)
    names = [f"word{i}" for i in range(4)]
    for name in names:
        add_column(tmp_path, name)
    for _ in range(5):
        for name in names:
            (tmp_path / "columns" / name / "current.json").unlink()
        merge(tmp_path, "base", Dataset.open(tmp_path).column("base").revision)
        assert set(read_manifest(tmp_path)["columns"]) == {"base"}
        threads = [threading.Thread(target=merge, args=(tmp_path, name, "aaaaaaaaaa")) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(read_manifest(tmp_path)["columns"]) == {"base", *names}


def test_a_column_merged_while_the_manifest_is_rebuilt_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(city_recipe(), tmp_path)
    for name in ("first", "second"):
        add_column(tmp_path, name)
        (tmp_path / "columns" / name / "current.json").unlink()
    build = manifest_module._dataset_manifest

    def slow_build(dataset: Path, current: dict[str, str]) -> dict[str, object]:
        made = build(dataset, current)
        monkeypatch.setattr(manifest_module, "_dataset_manifest", build)
        merge(dataset, "second", "aaaaaaaaaa")  # comes and goes between looking and writing
        return made

    monkeypatch.setattr(manifest_module, "_dataset_manifest", slow_build)
    merge(tmp_path, "first", "aaaaaaaaaa")
    assert set(read_manifest(tmp_path)["columns"]) == {"base", "first", "second"}


def test_counts_that_do_not_add_up_are_refused(own_town: Path) -> None:
    revision = Dataset.open(own_town).column("base").revision
    path = own_town / "plans" / revision / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "files_seen": plan["files_seen"] + 1}))
    with pytest.raises(UserError, match="do not add up"):
        merge(own_town, "base", revision)


def test_a_column_of_another_base_is_stale(own_town: Path) -> None:
    packed(city_recipe(source={"seed": 5}), own_town)
    dataset = Dataset.open(own_town)
    assert set(dataset.columns) == {"base"}
    assert read_manifest(own_town)["stale"] == {"word": "aaaaaaaaaa"}
    with pytest.raises(UserError, match="Run its job again"):
        merge(own_town, "word", "aaaaaaaaaa")
    assert verify(own_town) == []


def test_other_formats_are_refused_with_what_to_do(own_town: Path) -> None:
    dataset = Dataset.open(own_town)
    path = Plan.open(own_town, dataset.column("base").revision).path(0)
    receipt = json.loads(path.receipt.read_text())
    path.receipt.write_text(json.dumps({**receipt, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="newer Semiocity"):
        read_receipt(path)
    path.receipt.write_text("[]")
    with pytest.raises(UserError, match="make it again"):
        read_receipt(path)
    path.receipt.unlink()
    assert read_receipt(path) is None


def test_receipts_say_nothing_of_when_and_where(town: Path) -> None:
    plan = Plan.open(town, Dataset.open(town).column("base").revision)
    receipt = read_receipt(plan.path(0))
    assert receipt is not None
    text = json.dumps(receipt)
    assert os.uname().nodename not in text
    assert str(town) not in text
    assert receipt["rows"] == sum(receipt["splits"].values()) == 6
    assert receipt["stage"]["args"] == {"plan": plan.revision}


def test_folders_of_a_thousand(tmp_path: Path) -> None:
    plan = make_plan(city_recipe(source={"train": 2100, "val": 0}, shard_rows=1), tmp_path)
    assert plan.shards == 2100
    pack_shards(plan, [0, 999, 1000, 2099], Owner.here())
    names = sorted(name for name in tree(column_folder(tmp_path, "base", plan.revision)) if name.endswith(".json"))
    assert names == ["00000/00000000.json", "00000/00000999.json", "00001/00001000.json", "00002/00002099.json"]
    assert len(missing(plan.folder, plan.shards)) == 2096


def test_planning_needs_no_numpy(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from semiocity.data.manifest import merge, missing
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
plan = make_plan(Recipe.model_validate({"name": "a", "source": {"kind": "city"}}), Path(sys.argv[1]))
print(missing(plan.folder, plan.shards))
print([name for name in ("numpy", "PIL", "pyarrow", "torch") if name in sys.modules])
"""
    result = run(code, tmp_path)
    assert result.stdout.split("\n")[:2] == ["[0]", "[]"], result.stdout + result.stderr


@pytest.mark.parametrize("name", ["city", "camvid", "folder"])
def test_the_recipes_that_come_along_load(name: str, tmp_path: Path) -> None:
    path = HERE.parents[1] / "shards" / f"{name}.toml"
    sets = [] if name == "city" else [f"source.root={tmp_path}"]
    recipe = load_recipe(path, sets)
    assert recipe.name == name
    assert "root" not in recipe.resolved()["source"]
    if name != "city":
        with pytest.raises(UserError, match=r"source\.root is missing"):
            load_recipe(path)


def test_city_is_described_as_it_is() -> None:
    from semiocity.data.sources import city, generated

    assert generated.VERSION == city.VERSION
    assert tuple(name for name, _ in generated.CLASSES) == city.CLASSES
    assert tuple(color for _, color in generated.CLASSES) == city.PALETTE


def test_nothing_to_pack_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"nothing to pack: 0 picture files seen"):
        make_plan(folder_recipe(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(UserError, match=r"source\.root"):
        make_plan(folder_recipe(tmp_path / "nowhere"), tmp_path / "out")
