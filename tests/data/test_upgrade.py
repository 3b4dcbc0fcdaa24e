"""Datasets of format 1: refused with the command that upgrades them, upgraded where they lie, also in bits."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from make_images import tree

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.layout import ShardPath, column_folder
from semiocity.data.manifest import merge, read_column_manifest, read_manifest
from semiocity.data.plan import Plan
from semiocity.data.upgrade import upgrade
from semiocity.data.verify import verify
from semiocity.errors import UserError

ASSET = Path(__file__).parents[1] / "assets" / "format-1.tar.gz"
"""7 rows of the city at 32² in 3 shards, columns base and word, packed by the code of format 1."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ASSET) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "town"


def test_old_data_are_refused_with_the_command(old: Path) -> None:
    revision = json.loads((old / "manifest.json").read_text())["columns"]["base"]["revision"]
    for use in (
        lambda: Dataset.open(old),
        lambda: verify(old),
        lambda: merge(old, "word", "aaaaaaaaaa"),
        lambda: merge(old, "base", revision),
        lambda: read_column_manifest(old, "base", revision),
        lambda: Plan.open(old, revision),
    ):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value).endswith(f"format 1, now it is 2. Run `semiocity upgrade {old}`")


def test_upgrading_changes_no_sample_and_no_digest(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, facts = tree(old), json.loads((old / "manifest.json").read_text())
    assert main(["upgrade", str(old)]) == 0
    after = tree(old)
    for name, data in before.items():
        if name.endswith((".tar", ".parquet", ".jsonl")):
            assert after[name] == data
    assert read_manifest(old)["digest"] == facts["digest"]
    assert read_manifest(old)["columns"]["word"]["digest"] == facts["columns"]["word"]["digest"]
    assert verify(old) == verify(old, quick=True) == []
    view = Dataset.open(old).view(["base.image", "word.text"])
    assert len(view) == 6 and view.read(5)["word.text"] == view.key(5).encode()
    plan = Plan.open(old, facts["columns"]["base"]["revision"])
    assert [len(plan.rows(shard)) for shard in range(plan.shards)] == [3, 3, 1]
    assert "12 files brought to format 2" in capsys.readouterr().out


def test_upgrading_twice_changes_nothing(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upgrade(old)
    before = tree(old)
    assert upgrade(old) == (0, [])
    assert tree(old) == before
    assert main(["upgrade", str(old), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": 0, "trouble": []}


def test_merging_after_the_upgrade_makes_the_same_manifests(old: Path) -> None:
    upgrade(old)
    before = tree(old)
    for column in ("base", "word"):
        merge(old, column, read_manifest(old)["columns"][column]["revision"], reread=True)
    assert tree(old) == before


def test_a_dataset_that_was_never_merged_is_upgraded_too(old: Path) -> None:
    revision = json.loads((old / "manifest.json").read_text())["columns"]["base"]["revision"]
    whole = tree(old)
    for path in [old / "manifest.json", *old.glob("columns/*/current.json"), *old.glob("columns/*/*/manifest.json")]:
        path.unlink()
    upgrade(old)
    merge(old, "base", revision)
    merge(old, "word", "aaaaaaaaaa")
    assert tree(old).keys() - whole.keys() == {
        str(path.relative_to(old)) for path in old.glob("columns/*/*/receipts.*")
    }
    assert verify(old) == []


def test_what_cannot_be_upgraded_is_named(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = column_folder(old, "word", "aaaaaaaaaa")
    ShardPath(word, 1).receipt.write_text("{")
    parquet = ShardPath(word, 2).parquet
    parquet.write_bytes(parquet.read_bytes()[:-1])
    assert main(["upgrade", str(old)]) == 1
    said = capsys.readouterr().out
    assert "00000001.json: not upgraded" in said and "00000002.parquet: missing or damaged" in said
    assert "Run its job again" in said
    assert set(read_manifest(old)["columns"]) == {"base"}, "a column with a gap is not used"
    assert verify(old) == []


def test_without_base_the_dataset_stays_old(old: Path) -> None:
    revision = json.loads((old / "manifest.json").read_text())["columns"]["base"]["revision"]
    ShardPath(column_folder(old, "base", revision), 1).receipt.unlink()
    _, trouble = upgrade(old)
    assert any("1 receipts are gone (00000001)" in line for line in trouble)
    with pytest.raises(UserError, match="semiocity upgrade"):
        read_manifest(old)


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset"):
        upgrade(tmp_path)
