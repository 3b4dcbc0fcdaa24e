"""Repair: what can be mended exactly is, the rest is named with the command that computes it again."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import test_verify as damages
from make_images import city_recipe, tree

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.layout import ShardPath, column_folder
from semiocity.data.lease import Owner, lease
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.reindex import reindex
from semiocity.data.repair import repair
from semiocity.data.shard import read_receipt
from semiocity.data.verify import verify
from semiocity.errors import UserError


def shard(town: Path, column: str = "base", number: int = 1) -> ShardPath:
    return ShardPath(Dataset.open(town).column(column).folder, number)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def kinds(town: Path, apply: bool = False) -> list[str]:
    return [step.kind for step in repair(town, apply)]


def test_a_good_dataset_needs_nothing(town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(town)
    assert repair(town) == repair(town, apply=True) == []
    assert main(["repair", str(town)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert tree(town) == before


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_an_index_is_made_again_from_the_tar(own_town: Path, how: str) -> None:
    before = tree(own_town)
    parquet = shard(own_town).parquet
    if how == "lost":
        parquet.unlink()
    else:
        flip(parquet, 200)
    broken = tree(own_town)
    assert kinds(own_town) == ["index"]
    assert tree(own_town) == broken, "nothing is done without --apply"
    assert kinds(own_town, apply=True) == ["index"]
    assert tree(own_town) == before
    assert verify(own_town) == []


def test_an_index_with_a_stages_scalars_is_computed_again(own_town: Path) -> None:
    """`letters` is in the parquet alone; nobody can know what it was."""
    path = shard(own_town, "word")
    path.parquet.unlink()
    step = repair(own_town)[0]
    assert (step.kind, step.command) == ("recompute", f"semiocity word jobs/word.toml --set dataset={own_town}")
    assert path.receipt.exists()
    repair(own_town, apply=True)
    assert not path.receipt.exists(), "its job makes the shard anew"


def test_no_index_is_made_from_a_damaged_tar(own_town: Path) -> None:
    path = shard(own_town)
    path.parquet.unlink()
    flip(path.tar, 600)
    receipt = read_receipt(path)
    assert receipt is not None and reindex(path, receipt) is None
    assert kinds(own_town) == ["recompute"]


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_receipt_is_had_back_from_the_compacted_ones(own_town: Path, how: str) -> None:
    before = tree(own_town)
    path = shard(own_town, "word")
    if how == "lost":
        path.receipt.unlink()
    else:
        path.receipt.write_text("{")
    assert kinds(own_town) == ["receipt"]
    assert kinds(own_town, apply=True) == ["receipt"]
    assert tree(own_town) == before


def test_a_receipt_does_not_come_back_for_other_bytes(own_town: Path) -> None:
    path = shard(own_town, "word")
    path.receipt.unlink()
    flip(path.tar, 600)
    assert kinds(own_town, apply=True) == ["recompute"]
    assert not path.receipt.exists()


def test_a_lost_shard_is_packed_again_by_the_named_command(
    own_town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine.toml").write_text('name = "town"\n')
    before = tree(own_town)
    flip(shard(own_town).tar, 700)
    assert main(["repair", str(own_town), "--apply"]) == 1
    assert "semiocity pack shards/mine.toml" in capsys.readouterr().out
    plan = make_plan(city_recipe(), own_town)
    assert pack_shards(plan, range(plan.shards), Owner.here())
    assert repair(own_town, apply=True) == []
    assert tree(own_town) == before


@pytest.mark.parametrize("what", ["manifest.json", "columns/word/aaaaaaaaaa/manifest.json", "both", "receipts"])
def test_manifests_are_made_again_from_receipts(own_town: Path, what: str) -> None:
    before = tree(own_town)
    if what == "receipts":
        next(own_town.glob("columns/word/*/receipts.*")).write_text("{}")
    else:
        for name in ["manifest.json", "columns/word/aaaaaaaaaa/manifest.json"] if what == "both" else [what]:
            (own_town / name).unlink()
    assert set(kinds(own_town)) == {"merge"}
    assert set(kinds(own_town, apply=True)) == {"merge"}
    assert tree(own_town) == before


def test_a_column_that_lost_manifest_and_shards_is_to_be_made_again(own_town: Path) -> None:
    folder = column_folder(own_town, "word", "aaaaaaaaaa")
    (folder / "manifest.json").unlink()
    ShardPath(folder, 1).tar.unlink()
    steps = repair(own_town, apply=True)
    assert [step.kind for step in steps] == ["recompute"]
    assert set(Dataset.open(own_town).columns) == {"base"}
    assert verify(own_town) == []


def test_leftovers_of_the_dead_go_and_work_stays(own_town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = shard(own_town).parent / ".00000001.tar.abc.tmp"
    dead.touch()
    assert kinds(own_town, apply=True) == [], "somebody may be writing it"
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)  # change times cannot be set
    assert kinds(own_town) == ["leftover"]
    assert dead.exists()
    repair(own_town, apply=True)
    assert not dead.exists()


def test_a_shard_that_somebody_works_on_is_left_alone(own_town: Path) -> None:
    path = shard(own_town)
    path.parquet.unlink()
    with lease(path.lease, Owner("another", 0, 0, "elsewhere", os.getpid())) as held:
        assert held
        steps = repair(own_town, apply=True)
    assert [step.kind for step in steps] == ["by hand"]
    assert "somebody works on it" in steps[0].why
    assert not path.parquet.exists()


def test_shards_beyond_the_plan_are_left_to_a_person(own_town: Path) -> None:
    stranger = shard(own_town).parent / "00000009.tar"
    stranger.touch()
    assert kinds(own_town, apply=True) == ["by hand"]
    assert stranger.exists()


MENDED_BY: dict[Callable[[Path], None], list[str]] = {
    damages.boundary_cut: ["recompute base"],
    damages.boundary_cut_with_clean_end: ["recompute base"],
    damages.cut_inside: ["recompute base"],
    damages.header_flip: ["recompute base"],
    damages.payload_flip: ["recompute base"],
    damages.end_cut: ["recompute base"],
    damages.missing_tar: ["recompute base"],
    damages.missing_shard: ["recompute base"],
    damages.missing_column_shard: ["recompute word"],
    damages.missing_column: ["merge word"],
    damages.key_in_one_column_only: ["recompute word"],
    damages.same_key_in_two_shards: ["recompute base"],
    damages.base_made_anew_otherwise: ["merge base", "recompute word"],
    damages.index_flip: ["index base"],
    damages.index_cut: ["index base"],
    damages.receipt_damaged: ["receipt base"],
    damages.receipt_of_other_shard: ["recompute base"],
    damages.receipt_differs_from_manifest: ["recompute base"],
    damages.manifest_of_column_missing: ["merge word"],
    damages.manifest_of_column_edited: ["merge word"],
    damages.compacted_receipts_flipped: ["merge word"],
    damages.compacted_receipts_missing: ["merge word"],
    damages.dataset_manifest_miscounts: ["recompute "],
    damages.plan_missing: ["recompute "],
    damages.shard_beyond_the_last: ["by hand base"],
}
"""As the table in docs/verify.md has it."""


@pytest.mark.parametrize("damage", MENDED_BY, ids=[damage.__name__ for damage in MENDED_BY])
def test_what_is_done_about_every_fault(own_town: Path, damage: Callable[[Path], None]) -> None:
    damage(own_town)
    assert [f"{step.kind} {step.column}" for step in repair(own_town)] == MENDED_BY[damage]


def test_every_fault_has_its_remedy_and_its_line_in_the_docs() -> None:
    assert MENDED_BY.keys() == {damage for damage, *_ in damages.DAMAGES}
    page = Path(__file__).parents[2] / "docs" / "verify.md"
    told = set(re.findall(r"`([a-z_]+)`", page.read_text()))
    assert {damage.__name__ for damage in MENDED_BY} <= told


@pytest.mark.parametrize("damage", [damages.receipt_damaged, damages.missing_shard, damages.receipt_of_other_shard])
def test_a_column_is_not_made_again_because_its_parents_shard_was_lost(
    own_town: Path, damage: Callable[[Path], None]
) -> None:
    """Hours on GPUs hang on it: what the parent is made again from gives the same bytes."""
    before = tree(own_town)
    damage(own_town)
    repair(own_town, apply=True)
    assert read_receipt(shard(own_town, "word")) is not None
    plan = make_plan(city_recipe(), own_town)
    assert pack_shards(plan, range(plan.shards), Owner.here())
    assert verify(own_town) == []
    assert {n: d for n, d in tree(own_town).items() if n.endswith("tar")} == {
        n: d for n, d in before.items() if n.endswith("tar")
    }


def test_json(own_town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(own_town).parquet.unlink()
    assert main(["repair", str(own_town), "--json"]) == 1
    step = json.loads(capsys.readouterr().out)[0]
    assert (step["kind"], step["column"], step["shard"]) == ("index", "base", 1)
    assert main(["repair", str(own_town), "--json", "--apply"]) == 0


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        repair(tmp_path)
