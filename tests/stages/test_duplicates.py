"""The column `duplicates` from pictures to splits: found, kept, moved, written once, and told to people."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alike import CHANGES, jpeg, png
from PIL import Image
from stage_data import contents, key_of, read_column, run_stage, write_base

from semiocity.config import check
from semiocity.data.columns import Dataset
from semiocity.data.duplicate_rows import gather, in_shards, join
from semiocity.data.duplicates import Clusters, Limits, cluster
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, column_folder, merge, read_manifest, read_receipt
from semiocity.data.sources.city import scene
from semiocity.data.verify import verify
from semiocity.data.view_build import build
from semiocity.data.view_build import merge as merge_view
from semiocity.data.views import ViewJob, plan_view
from semiocity.errors import UserError
from semiocity.stages.base import make_stage
from semiocity.stages.duplicates_check import leaks, show
from semiocity.stages.duplicates_page import SIDE, Card, Group, page, thumbnail
from semiocity.stages.duplicates_report import write
from semiocity.stages.indexes import live
from semiocity.stages.reduce import Reduce, make_reduce, revision
from semiocity.stages.reduce_runner import run_reduce

SHARD_ROWS = 4
RELATIVES = ("recompressed", "half the size", "brighter", "palette")
Pictures = dict[str, dict[str, tuple[str, bytes]]]


def picture(number: int) -> Image.Image:
    return Image.fromarray(scene(3, number, 96, 96).image)


def pictures() -> tuple[Pictures, dict[str, str]]:
    """Rows and splits: scene 0 in five forms of two splits, scene 1 twice byte for byte, two black ones, six others,
    one that cannot be decoded, and one that was taken down."""
    forms = [png(picture(0)), *(CHANGES[name](picture(0)) for name in RELATIVES)]
    black = [png(Image.new("RGB", size)) for size in ((96, 96), (64, 48))]
    others = [jpeg(picture(number)) for number in range(2, 8)]
    payloads = [*forms, *([jpeg(picture(1))] * 2), *black, *others, b"<html>404</html>"]
    rows: Pictures = {key_of(i): {"image": ("png" if p[:1] == b"\x89" else "jpg", p)} for i, p in enumerate(payloads)}
    rows[key_of(len(payloads))] = {}
    return rows, {key_of(number): "val" for number in (2, 6, 10)}


def add_hashes(dataset: Path) -> Path:
    merge(dataset, "hash", run_stage(make_stage("hash", {"hasher": "dct"}), dataset).name)
    return dataset


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, splits = pictures()
    return add_hashes(write_base(tmp_path_factory.mktemp("data") / "alike", rows, SHARD_ROWS, (), splits=splits))


@pytest.fixture
def own(hashed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hashed, tmp_path / "alike"))


def run(dataset: Path, reduce: Reduce | None = None, **more: Any) -> Path:
    """Run the stage to its end and merge; returns the folder of the column's revision."""
    reduce = reduce or make_reduce("duplicates", {})
    facts = read_manifest(dataset)
    made, shards = revision(reduce, facts), range(facts["columns"]["base"]["shards"])
    assert run_reduce(reduce, dataset, "duplicates", made, shards, Owner.here(), **more)
    merge(dataset, "duplicates", made)
    return column_folder(dataset, "duplicates", made)


def test_what_is_found_kept_and_moved(own: Path) -> None:
    found = read_column(run(own))
    rows = [found[key_of(i)][1] for i in range(15)]
    assert [row["cluster"] for row in rows[:5]] == [rows[0]["cluster"]] * 5
    assert {row["split"] for row in rows[:5]} == {"val"}, "one of them was held out"
    assert [row["keep"] for row in rows[:5]] == [False, False, True, False, False]
    assert [row["exact"] for row in rows[:5]] == [False, False, True, False, False]
    assert all(0 <= row["distance"] <= 8 for row in rows[:5]) and {row["size"] for row in rows[:5]} == {5}
    assert [row["keep"] for row in rows[5:7]] == [False, True]
    assert all(row["exact"] and row["split"] == "val" for row in rows[5:7])
    assert rows[7]["cluster"] == rows[8]["cluster"] and rows[8]["distance"] is None, "flat, the larger is kept"
    assert [(row["size"], row["keep"], row["exact"]) for row in rows[9:]] == [(1, True, True)] * 6
    assert [row["split"] for row in rows[9:]] == ["train", "val", *["train"] * 4]
    assert len({row["cluster"] for row in rows}) == 9
    record = json.loads(found[key_of(0)][0]["record"] or b"")
    assert record == rows[0], "no other row is named: it may be taken down"
    assert found[key_of(15)][2] == ("permanent", "hash: image cannot be decoded: cannot identify image file")
    assert (found[key_of(16)][2] or ("", ""))[0] in ("permanent", "removed")


def test_the_column_is_one_like_any_other(own: Path) -> None:
    folder = run(own)
    assert verify(own) == []
    dataset = Dataset.open(own)
    view = dataset.view(["base.image", "duplicates.keep", "duplicates.split"])
    assert len(view) == 15, "what has no hash is left out"
    kept = [view.read(i) for i in range(len(view)) if view.read(i)["duplicates.keep"]]
    assert len(kept) == 9
    receipt = read_receipt(ShardPath(folder, 0)) or {}
    assert set(receipt["parents"]) == {"base", "hash"}
    assert receipt["stage"]["args"]["distance"] == 8


def test_nothing_depends_on_which_shard_a_row_is_in(own: Path) -> None:
    dataset = Dataset.open(own)
    needs = make_reduce("duplicates", {}).needs()
    parts = [gather(live(dataset, shard, needs), "base.split") for shard in range(dataset.shards)]
    outcomes = []
    for order in (parts, parts[::-1], parts[2:] + parts[:2]):
        joined = join(order, ("test", "val"))
        found = in_shards(cluster(joined.rows, Limits()), joined.order)
        keys = np.empty_like(joined.rows.keys)
        keys[joined.order] = joined.rows.keys
        kept = keys[found.representative]
        values = zip(kept.tolist(), *(getattr(found, f.name).tolist() for f in fields(Clusters)[1:]))
        outcomes.append(dict(zip(keys.tolist(), values)))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_only_what_is_missing_is_made_and_of_the_same_bytes(own: Path) -> None:
    folder = run(own)
    before = contents(folder)
    inodes = {path: path.stat().st_ino for path in folder.rglob("*.tar")}
    ShardPath(folder, 2).receipt.unlink()
    run(own)
    assert {name: data for name, data in contents(folder).items() if "/" in name} == {
        name: data for name, data in before.items() if "/" in name
    }
    changed = [path.name for path, inode in inodes.items() if path.stat().st_ino != inode]
    assert changed == ["00000002.tar"]


def test_a_stop_leaves_whole_shards_and_the_next_goes_on(own: Path) -> None:
    reduce = make_reduce("duplicates", {})
    made = revision(reduce, read_manifest(own))
    folder = column_folder(own, "duplicates", made)

    def stop_when(reached: Callable[[], bool]) -> bool:
        return run_reduce(reduce, own, "duplicates", made, range(5), Owner.here(), stop=reached)

    assert not stop_when(lambda: True)
    assert not list(folder.glob("0*/*")), "no shard yet"
    assert not stop_when(lambda: len(list(folder.rglob("*.tar"))) == 2)
    assert len(list(folder.glob("0*/*"))) == 6
    assert read_manifest(own)["columns"].get("duplicates") is None
    resumed = contents(run(own))
    shutil.rmtree(folder)
    assert contents(run(own)) == resumed


def linked(before: Path, after: Path) -> list[str]:
    """Tars that two revisions share."""
    tars = [path.relative_to(after) for path in sorted(after.rglob("*.tar"))]
    return [path.name for path in tars if (before / path).samefile(after / path)]


def test_shards_that_stay_the_same_are_linked_to_the_revision_before(own: Path, tmp_path: Path) -> None:
    before = run(own)
    facts: list[dict[str, Any]] = []
    after = run(own, make_reduce("duplicates", {"distance": 7}), report=facts.append)
    assert before != after and facts[-1]["linked_shards"] >= 3
    assert len(linked(before, after)) == facts[-1]["linked_shards"]
    assert verify(own) == []
    made = contents(after)
    shutil.rmtree(before)
    shutil.rmtree(after)
    (before.parent / "current.json").unlink()
    merge(own, "hash", read_manifest(own)["columns"]["hash"]["revision"])
    assert contents(run(own, make_reduce("duplicates", {"distance": 7}))) == made, "links or not: the same bytes"


def test_a_shard_that_is_damaged_is_not_linked(own: Path) -> None:
    before = run(own)
    after = run(own, make_reduce("duplicates", {"distance": 7}))
    same = linked(before, after)
    shutil.rmtree(after)
    run(own)
    ShardPath(before, int(same[0][:8])).parquet.unlink()
    ShardPath(before, int(same[0][:8])).parquet.write_bytes(b"PAR1")
    assert linked(before, run(own, make_reduce("duplicates", {"distance": 7}))) == same[1:]
    assert verify(own) == []


def test_the_revision_follows_the_bytes_of_the_parents(own: Path) -> None:
    reduce = make_reduce("duplicates", {})
    facts = read_manifest(own)
    assert revision(reduce, facts) == revision(make_reduce("duplicates", {"distance": 8}), facts)
    assert revision(reduce, facts) != revision(make_reduce("duplicates", {"distance": 7}), facts)
    changed = json.loads(json.dumps(facts))
    changed["columns"]["hash"]["digest"] = "0" * 64
    assert revision(reduce, facts) != revision(reduce, changed)
    with pytest.raises(UserError, match="they changed since the job was submitted"):
        run_reduce(reduce, own, "duplicates", "0123456789", range(5), Owner.here())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"distance": 17}, "distance: Input should be less than or equal to 16"),
        ({"gradient": 3}, "gradient: unknown key; did you mean gradients?"),
        ({"split": "split"}, "split: "),
    ],
)
def test_wrong_arguments_are_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"jobs/x\.toml: args: ") as refused:
        make_reduce("duplicates", args, where="jobs/x.toml: args")
    assert said in str(refused.value)
    with pytest.raises(UserError, match="reduce stage 'doubles' does not exist; there are duplicates"):
        make_reduce("doubles", {})


def test_the_report_counts_and_shows(own: Path, tmp_path: Path) -> None:
    run(own)
    args = make_reduce("duplicates", {}).args
    facts = write(Dataset.open(own), "duplicates", args, tmp_path)
    assert facts == json.loads((tmp_path / "duplicates.json").read_text())
    assert (facts["rows"], facts["clusters"], facts["clusters_of_several"], facts["largest"]) == (15, 9, 3, 5)
    assert facts["not_kept"] == {"exact": 1, "near": 5}
    assert facts["splits_before"] == {"train": 12, "val": 3}
    assert facts["splits_after"] == {"train": 7, "val": 8}
    assert facts["splits_kept"] == {"train": 6, "val": 3}
    assert facts["moved"] == [{"from": "train", "to": "val", "rows": 5}]
    html = (tmp_path / "duplicates.html").read_text()
    assert "<script" not in html and "http" not in html
    assert html.count("<section>") == 3 + 2 + 1
    assert html.count("data:image/jpeg;base64,") == html.count("<img") == 9 + 7 + 5
    assert "train → val" in html and key_of(2) in html


def test_a_name_from_the_data_is_text_on_the_page() -> None:
    args = {"distance": 8, "gradients": 12, "held_out": ["<q>"]}
    facts = {
        **dict.fromkeys(("rows", "clusters", "clusters_of_several", "largest"), 0),
        **{name: {} for name in ("splits_before", "splits_after", "splits_kept")},
        "dataset": "<i>",
        "column": "c",
        "revision": "r",
        "args": args,
        "not_kept": {"exact": 0, "near": 0},
        "moved": [{"from": "<u>", "to": None, "rows": 1}],
    }
    text = page(facts, [("Title", "Text", [Group(1, 1, [Card("k", "", "<script>", True, "kept")])])])
    assert not any(tag in text for tag in ("<q>", "<i>", "<u>", "<script>"))


def test_leaking_splits_are_found_without_believing_the_column(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = leaks(Dataset.open(own), "base.split")
    assert not before["clean"] and before["leaks"] == 5
    assert {example["near_split"] for example in before["examples"]} == {"val"}
    assert show(own, "base.split", None, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["leaks"] == 5
    run(own)
    assert leaks(Dataset.open(own), "base.split")["separated"] == 2
    after = leaks(Dataset.open(own), "duplicates.split")
    assert after["clean"] and (after["separated"], after["leaks"], after["leaks_not_kept"]) == (0, 0, 0)
    assert show(own, "duplicates.split", None, as_json=False) == 0
    assert "0 clusters in several splits, 0 kept rows" in capsys.readouterr().out
    with pytest.raises(UserError, match="no column other"):
        leaks(Dataset.open(own), "other.split")


def test_a_view_is_clean_when_it_takes_splits_and_rows_from_the_column(own: Path) -> None:
    def saved(name: str, **rule: str) -> dict[str, Any]:
        job = check({"dataset": own, "fields": ["base.image"], "name": name, **rule}, ViewJob, name)
        plan = plan_view(job, name, name)
        assert build(plan, range(plan.shards))
        merge_view(plan)
        return leaks(Dataset.open(own), "base.split", name)

    run(own)
    facts = saved("official")
    assert (facts["rows"], facts["leaks"], facts["separated"], facts["clean"]) == (15, 5, 2, False)
    facts = saved("clean", split="duplicates.split", filter="duplicates.keep")
    assert (facts["rows"], facts["leaks"], facts["separated"], facts["clean"]) == (9, 0, 0, True)
    facts = saved("few", filter='"010" in key or split == "train"')
    assert facts["leaks"] == 0 and facts["rows"] < 15


def test_rows_that_come_later_leave_other_clusters_their_ids(own: Path, tmp_path: Path) -> None:
    first = read_column(run(own))
    rows, splits = pictures()
    for number in range(20, 24):
        rows[key_of(number)] = {"image": ("jpg", jpeg(picture(number)))}
    rows[key_of(24)] = {"image": ("jpg", jpeg(picture(7), 40))}
    later = add_hashes(write_base(tmp_path / "later" / "alike", rows, SHARD_ROWS, (), splits=splits))
    second = read_column(run(later))
    names = [key_of(number) for number in range(14)]
    assert [first[key][1]["cluster"] for key in names] == [second[key][1]["cluster"] for key in names]
    assert second[key_of(24)][1]["cluster"] == second[key_of(14)][1]["cluster"]


def test_pictures_are_decoded_as_they_are_shown() -> None:
    data = base64.b64decode(thumbnail(png(Image.new("LA", (400, 100)))).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE // 4)
    assert np.asarray(Image.open(io.BytesIO(data))).ndim == 3
