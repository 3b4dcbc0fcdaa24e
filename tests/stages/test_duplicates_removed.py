"""A row that was taken down is named by no other row's duplicates, and a cluster that lost the row it keeps says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alike import CHANGES, jpeg
from PIL import Image
from stage_data import run_stage

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, merge, read_manifest
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.provenance import columns, healthy
from semiocity.data.recipe import Recipe
from semiocity.data.removed import read_removed
from semiocity.data.sources.city import scene
from semiocity.data.takedown import carry_out, remains, request
from semiocity.data.verify import verify
from semiocity.files import canonical
from semiocity.stages import duplicates
from semiocity.stages.base import Made, Tombstone, make_stage
from semiocity.stages.duplicates_check import leaks
from semiocity.stages.reduce import Stop, make_reduce, revision
from semiocity.stages.reduce_runner import run_reduce

OWNER = Owner.here("remove")


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures of one scene, the largest of them john-smith's, and two others; with hashes."""
    monkeypatch.chdir(tmp_path)
    picture, root = Image.fromarray(scene(3, 0, 96, 96).image), tmp_path / "in"
    root.mkdir()
    (root / "john-smith.png").write_bytes(CHANGES["palette"](picture.resize((120, 120))))
    for i, change in enumerate(("recompressed", "half the size", "brighter")):
        (root / f"{i}.jpg").write_bytes(CHANGES[change](picture))
    for i in (4, 5):
        (root / f"{i}.jpg").write_bytes(jpeg(Image.fromarray(scene(3, i, 96, 96).image)))
    dataset = tmp_path / "data" / "town"
    recipe = {"name": "town", "source": {"kind": "folder", "root": str(root)}, "shard_rows": 2}
    plan = make_plan(Recipe.model_validate(recipe), dataset)
    assert pack_shards(plan, range(plan.shards), OWNER)
    merge(dataset, "base", plan.revision)
    merge(dataset, "hash", run_stage(make_stage("hash", {"hasher": "dct"}), dataset).name)
    return dataset


def conclude(dataset: Path) -> str:
    reduce, facts = make_reduce("duplicates", {}), read_manifest(dataset)
    made, shards = revision(reduce, facts), range(facts["columns"]["base"]["shards"])
    assert run_reduce(reduce, dataset, "duplicates", made, shards, OWNER)
    merge(dataset, "duplicates", made)
    return made


def key_of(dataset: Path, name: str) -> str:
    opened = Dataset.open(dataset)
    return next(k for s in range(opened.shards) for k in opened.reader("base", s).keys if k.endswith(f"-{name}"))


def take_down(dataset: Path, name: str) -> list[ShardPath]:
    return carry_out(dataset, request(dataset, [key_of(dataset, name)], "asked for it"), OWNER)


def traces(dataset: Path, needle: str) -> list[Path]:
    return [path for path in dataset.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]


def kept(dataset: Path) -> list[str]:
    view = Dataset.open(dataset).view(["base.image"], filter="duplicates.keep")
    return [view.key(i).partition("-")[2] for i in range(len(view))]


def first_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1 of the stage, which named the row that is kept in every row's record."""

    class First(duplicates.Duplicates):
        version = 1

        def conclude(self, gathered: Sequence[Any], threads: int, stop: Stop) -> duplicates.Conclusion:
            self.keys = [key for part in gathered for key in part.rows.keys.tolist()]
            return super().conclude(gathered, threads, stop)

        def rows(self, conclusion: duplicates.Conclusion, shard: int) -> list[Made | Tombstone]:
            made = super().rows(conclusion, shard)
            for row, number in zip(made, range(conclusion.starts[shard], conclusion.starts[shard + 1])):
                assert isinstance(row, Made)
                name = self.keys[conclusion.clusters.representative[number]].decode()
                extension, data = row.fields["record"]
                row.fields["record"] = (extension, canonical({**json.loads(data), "representative": name}).encode())
            return made

    monkeypatch.setattr(duplicates, "Duplicates", First)


def test_no_record_names_another_row(town: Path) -> None:
    conclude(town)
    assert len(traces(town / "columns" / "duplicates", "john-smith")) == 2, "the tar and the index that hold its row"
    take_down(town, "john-smith")
    assert traces(town, "john-smith") == [] and list(remains(town)) == []


def test_what_the_first_version_wrote_goes_too(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(town, "john-smith")
    with monkeypatch.context() as patch:
        first_version(patch)
        conclude(town)
    assert len(traces(town / "columns" / "duplicates", key)) >= 2, "in the shards of others"
    before = {p: p.read_bytes() for p in (town / "columns" / "duplicates").rglob("*.tar")}
    monkeypatch.setattr("semiocity.data.named_elsewhere.without_names", lambda payloads: payloads)
    take_down(town, "john-smith")
    left = [what for _, what in remains(town)]
    assert left and set(left) == {"names a row that was taken down"}
    assert any("names a row" in fault.what for fault in verify(town))
    monkeypatch.undo()
    monkeypatch.chdir(town.parents[1])
    assert carry_out(town, read_removed(town), OWNER), "a removal of an older version is completed"
    assert traces(town, "john-smith") == [] and list(remains(town)) == []
    assert [fault for fault in verify(town) if fault.level == "fault"] == []
    assert carry_out(town, read_removed(town), OWNER) == []
    untouched = [path for path, data in before.items() if path.read_bytes() == data]
    assert len(untouched) < len(before), "only shards that named it were written"


def test_a_cluster_that_lost_the_row_it_keeps_is_told_until_duplicates_ran_again(
    town: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, jobs = conclude(town), town.parents[1] / "jobs"
    jobs.mkdir()
    (jobs / "twins.toml").write_text('dataset = "data/town"\nreduce = "duplicates"\n')
    page = town.parents[1] / "runs" / "duplicates-town" / "duplicates.html"
    page.parent.mkdir(parents=True)
    page.write_text(f"<p>{key_of(town, 'john-smith')}</p>")
    assert len(kept(town)) == 3 and healthy(columns(town)) and leaks(Dataset.open(town), "duplicates.split")["clean"]
    assert main(["remove", "data/town", key_of(town, "john-smith"), "--reason", "asked for it", "--apply"]) == 0
    said = capsys.readouterr().out
    assert "1 clusters lost the row that they keep" in said and "`semiocity duplicates jobs/twins.toml`" in said
    assert "runs/duplicates-town/duplicates.html: shows a row" in said
    assert len(kept(town)) == 2, "none of three pictures of the cluster"
    assert main(["columns", "data/town"]) == 1 and "run its job again" in capsys.readouterr().out
    assert [(fault.level, fault.column) for fault in verify(town)] == [("note", "duplicates")]
    facts = leaks(Dataset.open(town), "duplicates.split")
    assert (facts["unkept"], facts["clean"]) == (1, False)
    assert main(["duplicates", "data/town", "--check"]) == 1 and "1 clusters without a row" in capsys.readouterr().out
    assert conclude(town) != made
    assert len(kept(town)) == 3 and main(["columns", "data/town"]) == 0 and verify(town) == []
    assert leaks(Dataset.open(town), "duplicates.split")["clean"]


def test_other_rows_of_a_cluster_may_go_unnoticed(town: Path) -> None:
    conclude(town)
    take_down(town, "4")
    take_down(town, next(name for name in ("0", "1", "2") if name not in kept(town)))
    assert [item.kept_by for item in read_removed(town)] == [(), ()]
    assert verify(town) == [] and healthy(columns(town))
