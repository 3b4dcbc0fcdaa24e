"""What other tools find in an export is what our own reader gives, and a broken export goes on where it broke."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import add_column, decoded, dice, tree
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from semiocity.cli import main
from semiocity.data import view_build
from semiocity.data.columns import Dataset
from semiocity.data.export import engine
from semiocity.data.export.engine import FORMATS, export
from semiocity.data.export.selection import Rows
from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardError
from semiocity.data.views import ViewJob, plan_view
from semiocity.errors import UserError

FIELDS = ["base.image", "base.label", "base.instance", "base.meta", "caption.text", "mask.rle"]


def ours(dataset: Dataset, *fields: str, split: str | None = None) -> dict[str, dict[str, Any]]:
    """Key → field → value, through our reader."""
    view = dataset.view([*fields, "base.split"], split)
    return {view.key(i): view.read(i) for i in range(len(view))}


def state(out: Path) -> dict[str, bytes]:
    """What a user gets: everything but the records."""
    return {name: data for name, data in tree(out).items() if not name.startswith(".export/")}


# ---------------------------------------------------------------- tables


def check_table_row(row: dict[str, Any], own: dict[str, Any], classes: bool = True) -> None:
    assert row["image"]["bytes"] == own["base.image"]
    assert row["image"]["path"] == f"{row['key']}.png"
    assert row["label"]["bytes"] == own["base.label"]
    assert row["caption_text"] == own["caption.text"].decode()
    assert json.loads(row["meta"]) == json.loads(own["base.meta"])
    assert row["classes"] == np.unique(decoded(own["base.label"])).tolist()
    assert (row["width"], row["height"], row["split"]) == (32, 32, own["base.split"])


def test_parquet(full: Dataset, tmp_path: Path) -> None:
    fields = ["base", "caption", "mask"]
    manifest = export(full.path, "parquet", tmp_path / "out", fields)
    expected = ours(full, *FIELDS)
    assert manifest["rows"] == {"train": 14, "val": 6}
    found = {}
    for split in ("train", "val"):
        for path in sorted((tmp_path / "out" / "data").glob(f"{split}-?????-of-00004.parquet")):
            for row in pq.read_table(path).to_pylist():
                assert row["split"] == split
                check_table_row(row, expected[row["key"]])
                found[row["key"]] = row
    assert set(found) == set(expected)
    metadata = pq.read_schema(next((tmp_path / "out" / "data").glob("*.parquet"))).metadata[b"huggingface"]
    features = json.loads(metadata)["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["classes"]["feature"]["names"] == [spec.name for spec in full.classes]
    assert '"path":"data/val-*.parquet","split":"val"' in (tmp_path / "out" / "README.md").read_text()


def test_a_datasets_folder(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "huggingface", tmp_path / "out", ["base", "caption"])
    expected = ours(full, *FIELDS)
    assert json.loads((tmp_path / "out" / "dataset_dict.json").read_text()) == {"splits": ["train", "val"]}
    keys = []
    for split in ("train", "val"):
        files = json.loads((tmp_path / "out" / split / "state.json").read_text())["_data_files"]
        for file in files:
            with pa.OSFile(str(tmp_path / "out" / split / file["filename"])) as source:
                rows = pa.ipc.open_stream(source).read_all().to_pylist()
            for row in rows:
                check_table_row(row, expected[row["key"]])
                assert row["split"] == split
            keys += [row["key"] for row in rows]
    assert sorted(keys) == sorted(expected)


def test_names_and_scalars_are_as_the_user_says(full: Dataset, tmp_path: Path) -> None:
    export(
        full.path,
        "parquet",
        tmp_path / "out",
        ["image=base.image", "text=caption.text", "base.width"],
        rows=Rows("val"),
    )
    files = sorted((tmp_path / "out" / "data").iterdir())
    table = pa.concat_tables(pq.read_table(path) for path in files)
    assert table.column_names == ["key", "image", "text", "width"]
    assert {row["key"]: row["text"].encode() for row in table.to_pylist()} == {
        key: row["caption.text"] for key, row in ours(full, *FIELDS, split="val").items()
    }
    assert all(path.name.startswith("val-") for path in files)


def test_failed_rows_are_left_out_and_counted(full: Dataset, tmp_path: Path) -> None:
    manifest = export(full.path, "parquet", tmp_path / "out", ["base.image", "word.text"])
    assert manifest["rows_total"] == 19
    assert manifest["left_out"] == {"rows": 1, "tombstones": {"word": 1}}
    assert manifest["columns"]["word"]["stage"] == {"name": "word", "version": 1, "args": {}}
    assert manifest["columns"]["base"]["revision"] == full.column("base").revision
    assert manifest["dataset_digest"] == full.digest


# ---------------------------------------------------------------- tars


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o644)
            found[member.name] = file.read()
        return found


def test_webdataset_joins_columns_in_one_tar(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "webdataset", tmp_path / "out", [*FIELDS, "base.width", "caption.short"])
    for key, own in ours(full, *FIELDS, "caption.short").items():
        (path,) = [p for p in (tmp_path / "out" / own["base.split"]).rglob("*.tar") if f"{key}.png" in members(p)]
        found = {name.partition(".")[2]: data for name, data in members(path).items() if name.startswith(key)}
        assert json.loads(found.pop("scalars.json")) == {"width": 32, "caption_short": own["caption.short"]}
        assert found == {
            "png": own["base.image"],
            "label.png": own["base.label"],
            "instance.png": own["base.instance"],
            "json": own["base.meta"],
            "txt": own["caption.text"],
            "mask.json": own["mask.rle"],
        }


def test_two_fields_of_one_extension_stay_apart(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "webdataset", tmp_path / "out", ["base.image", "caption.text", "word.text"])
    names = {name.partition(".")[2] for path in (tmp_path / "out").rglob("*.tar") for name in members(path)}
    assert names == {"png", "txt", "word.txt"}
    export(full.path, "webdataset", tmp_path / "named", ["base.image", "long.txt=caption.text", "txt=word.text"])
    path = next((tmp_path / "named" / "train").rglob("*.tar"))
    key = next(iter(members(path))).partition(".")[0]
    assert members(path)[f"{key}.txt"] == key.encode()
    with pytest.raises(UserError, match=r"both be members \.txt"):
        export(full.path, "webdataset", tmp_path / "no", ["base.image", "caption.text", "txt=word.text"])


def test_energon_index_says_where_rows_begin_and_end(full: Dataset, tmp_path: Path) -> None:
    for name, options in (("written", {}), ("linked", {"link": True})):
        out = tmp_path / name
        export(full.path, "energon", out, ["base.image", "base.label", "base.instance", "base.meta"], options=options)
        counts = {}
        for path in sorted(out.rglob("*.tar")):
            begins, last = [], ""
            with tarfile.open(path) as tar:
                for member in tar:
                    key = member.name.partition(".")[0]
                    if key != last:
                        begins.append(member.offset)
                    last = key
                end = tar.offset
            data = Path(f"{path}.idx").read_bytes()
            assert list(struct.unpack(f"<{len(data) // 8}Q", data)) == [*begins, end]
            counts[str(path.relative_to(out))] = len(begins)
        info = (out / ".nv-meta" / ".info.yaml").read_text().splitlines()
        assert info == ["shard_counts:", *(f"  {path}: {rows}" for path, rows in sorted(counts.items(), key=order))]
        split = (out / ".nv-meta" / "split.yaml").read_text()
        assert all(f"  - {path}\n" in split for path in counts)
        assert ('"all":' in split) == (name == "linked")


def order(item: tuple[str, int]) -> tuple[str, str]:
    """Tars in the order of shards, then splits."""
    return item[0].rpartition("/")[2], item[0]


def test_linked_tars_are_the_shards_themselves(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "webdataset", tmp_path / "out", ["base"], options={"link": True})
    for shard in range(full.shards):
        path = tmp_path / "out" / "00000" / f"{shard:08d}.tar"
        assert path.samefile(ShardPath(full.column("base").folder, shard).tar)
    with pytest.raises(UserError, match="not without instance"):
        export(
            full.path, "webdataset", tmp_path / "no", ["base.image", "base.label", "base.meta"], options={"link": True}
        )
    with pytest.raises(UserError, match="fields of base, caption"):
        export(full.path, "webdataset", tmp_path / "no", ["base", "caption"], options={"link": True})
    with pytest.raises(UserError, match="1 rows that failed"):
        export(full.path, "webdataset", tmp_path / "no", ["word"], options={"link": True})
    with pytest.raises(UserError, match="leave out --split, --filter and --view"):
        export(full.path, "webdataset", tmp_path / "no", ["base"], rows=Rows("val"), options={"link": True})
    assert not (tmp_path / "no").exists()


def test_a_link_to_another_file_system_is_symbolic(
    full: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export(full.path, "webdataset", tmp_path / "out", ["base"], options={"link": True})
    path = tmp_path / "out" / "00000" / "00000000.tar"
    assert path.is_symlink()
    assert path.samefile(ShardPath(full.column("base").folder, 0).tar)


def test_webshart_index_names_the_rows_of_a_split_in_the_shard_itself(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "webshart", tmp_path / "out", ["base.image", "base.meta", "caption.text"])
    expected = ours(full, *FIELDS)
    seen = set()
    for path in sorted((tmp_path / "out").glob("*/0*.json")):
        index = json.loads(path.read_text())
        tar = path.with_suffix(".tar")
        assert tar.samefile(ShardPath(full.column("base").folder, int(path.stem)).tar)
        assert index["filesize"] == tar.stat().st_size
        data = tar.read_bytes()
        for entry in index["files"]:
            key, _, ext = entry["path"].partition(".")
            own = expected[key]
            assert own["base.split"] == path.parent.name
            payload = data[entry["offset"] : entry["offset"] + entry["length"]]
            assert payload == own["base.image" if ext == "png" else "base.meta"]
            if ext == "png":
                seen.add(key)
                assert entry["captions"].encode() == own["caption.text"]
                assert (entry["width"], entry["height"], entry["aspect"]) == (32, 32, 1.0)
                assert data[entry["json_offset"] :][: entry["json_length"]] == own["base.meta"]
    assert seen == set(expected)


# ---------------------------------------------------------------- COCO


def test_coco_masks_equal_ours(full: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(full.path, "coco", out)
    names = [spec.name for spec in full.classes]
    total = 0
    for split in ("train", "val"):
        files = {
            kind: COCO(str(out / "annotations" / f"{kind}_{split}.json")) for kind in ("masks", "instances", "stuff")
        }
        captions = COCO(str(out / "annotations" / f"captions_{split}.json"))
        expected = ours(full, *FIELDS, split=split)
        assert len(files["masks"].imgs) == len(expected)
        for number, image in files["masks"].imgs.items():
            key = Path(image["file_name"]).stem
            own = expected[key]
            assert (out / "images" / split / image["file_name"]).read_bytes() == own["base.image"]
            assert (image["width"], image["height"]) == (32, 32)
            label, instance = decoded(own["base.label"]), decoded(own["base.instance"])
            masks = json.loads(own["mask.rle"])
            found = files["masks"].loadAnns(files["masks"].getAnnIds(number))
            assert [a["segmentation"]["counts"] for a in found] == [m["counts"] for m in masks["masks"]]
            assert [a["bbox"] for a in found] == [m["bbox"] for m in masks["masks"]]
            for annotation in found:
                votes = np.bincount(label[files["masks"].annToMask(annotation).astype(bool)], minlength=len(names))
                assert files["masks"].cats[annotation["category_id"]]["name"] == names[votes.argmax()]
            things = files["instances"].loadAnns(files["instances"].getAnnIds(number))
            assert [a["instance"] for a in things] == [i for i in np.unique(instance) if i]
            for annotation in things:
                mask = files["instances"].annToMask(annotation)
                assert (mask == (instance == annotation["instance"])).all()
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert annotation["bbox"] == box
            painted = np.full(label.shape, -1)
            for annotation in files["stuff"].loadAnns(files["stuff"].getAnnIds(number)):
                painted[files["stuff"].annToMask(annotation) == 1] = annotation["category_id"] - 1
            assert (painted == label).all()
            (caption,) = captions.loadAnns(captions.getAnnIds(number))
            assert caption["caption"].encode() == own["caption.text"]
            total += len(found)
    assert total > 20


def test_masks_without_label_maps_are_of_one_category(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "fiftyone", tmp_path / "out", ["base.image", "mask.rle"])
    labels = json.loads((tmp_path / "out" / "val" / "labels.json").read_text())
    assert labels["categories"] == [{"id": 1, "name": "unknown", "supercategory": ""}]
    assert {a["category_id"] for a in labels["annotations"]} == {1}
    assert [a["id"] for a in labels["annotations"]] == list(range(1, len(labels["annotations"]) + 1))
    first = labels["annotations"][0]["segmentation"]
    assert coco_mask.decode(first).shape == (32, 32)
    files = {str(p.relative_to(tmp_path / "out" / "val" / "data")) for p in (tmp_path / "out").glob("val/data/*/*")}
    assert files == {image["file_name"] for image in labels["images"]}
    with pytest.raises(UserError, match="no place for word_text"):
        export(full.path, "coco", tmp_path / "no", ["base.image", "word.text"])


def test_boxes_of_the_source_keep_their_names(tmp_path: Path) -> None:
    rows, _, dataset = layouts.pack_recipe("bdd100k-boxes", layouts.bdd100k(tmp_path / "in"), tmp_path / "bdd")
    export(dataset.path, "coco", tmp_path / "out")
    found = {split: COCO(str(tmp_path / "out" / "annotations" / f"boxes_{split}.json")) for split in dataset.splits}
    expected = {row["meta"]["file"]: json.loads(row["boxes"]) for row in rows.values() if row["boxes"] is not None}
    assert sum(map(len, expected.values())) == sum(len(labels.anns) for labels in found.values()) > 1
    for labels in found.values():
        assert [category["name"] for category in labels.cats.values()] == ["car", "unknown"]
        for annotation in labels.anns.values():
            assert annotation["category_id"] == 1
            assert annotation["bbox"] in [box["bbox"] for found_ in expected.values() for box in found_]
            assert annotation["attributes"]["occluded"] is False


# ---------------------------------------------------------------- folders


def test_imagefolder(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "imagefolder", tmp_path / "out", ["base.image", "caption.text", "base.width"])
    expected = ours(full, *FIELDS)
    seen = set()
    for split in ("train", "val"):
        for line in (tmp_path / "out" / split / "metadata.jsonl").read_text().splitlines():
            row = json.loads(line)
            assert set(row) == {"file_name", "text", "width", "key"}
            assert (tmp_path / "out" / split / row["file_name"]).read_bytes() == expected[row["key"]]["base.image"]
            assert row["text"].encode() == expected[row["key"]]["caption.text"]
            seen.add(row["key"])
    assert seen == set(expected)


def test_pairs_for_controlnets_have_label_maps_in_their_colours(full: Dataset, tmp_path: Path) -> None:
    options = {"conditioning": "base.label", "metadata": "csv"}
    export(full.path, "imagefolder", tmp_path / "out", options=options)
    text = (tmp_path / "out" / "train" / "metadata.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["image_file_name", "conditioning_image_file_name", "text", "key"]
    expected = ours(full, *FIELDS, split="train")
    assert [row["key"] for row in rows] == list(expected)
    palette = np.array(full.palette, dtype=np.uint8)
    for row in rows:
        shown = decoded((tmp_path / "out" / "train" / row["conditioning_image_file_name"]).read_bytes())
        assert (shown == palette[decoded(expected[row["key"]]["base.label"])]).all()
    with pytest.raises(UserError, match=r"caption\.text: not a picture"):
        export(full.path, "imagefolder", tmp_path / "no", options={"conditioning": "caption.text"})


# ---------------------------------------------------------------- which rows


@pytest.mark.parametrize("to", ["parquet", "webshart", "coco"])
def test_a_filter_chooses_rows(to: str, full: Dataset, tmp_path: Path) -> None:
    texts = {key: row["caption.text"].decode() for key, row in ours(full, "caption.text").items()}
    wanted = {key for key, text in texts.items() if "car" in text}
    assert 0 < len(wanted) < len(texts)
    rows = Rows(filter='"car" in caption.text')
    manifest = export(full.path, to, tmp_path / "out", ["base.image", "base.label"], rows)
    assert manifest["filter"] == rows.filter
    assert (manifest["rows_total"], manifest["left_out"]["rows"]) == (len(wanted), len(texts) - len(wanted))
    found = {
        "parquet": lambda: [key for p in tmp_path.rglob("*.parquet") for key in pq.read_table(p)["key"].to_pylist()],
        "webshart": lambda: [
            item["path"].partition(".")[0]
            for path in tmp_path.rglob("0*.json")
            if ".export" not in path.parts
            for item in json.loads(path.read_text())["files"]
        ],
        "coco": lambda: [path.stem for path in tmp_path.rglob("*.png")],
    }
    assert set(found[to]()) == wanted


def test_a_saved_view_brings_its_rows_columns_and_splits(own_city: Path, tmp_path: Path) -> None:
    wish = {"dataset": own_city, "fields": ["base.image", "caption.text"], "filter": 'base.time == "night"'}
    plan = plan_view(ViewJob.model_validate(wish), "night", "night")
    assert view_build.build(plan, range(plan.shards))
    view_build.merge(plan)
    before = Dataset.open(own_city)
    times = {key: row["base.time"] for key, row in ours(before, "base.time").items()}
    night = {key for key, time in times.items() if time == "night"}
    assert 0 < len(night) < len(times)
    manifest = export(own_city, "webdataset", tmp_path / "out", rows=Rows(view="night"))
    assert manifest["view"] == "night"
    assert manifest["rows_total"] == len(night)
    keys = {name.partition(".")[0] for path in (tmp_path / "out").rglob("*.tar") for name in members(path)}
    assert keys == night
    with pytest.raises(UserError, match="give one of the two"):
        export(own_city, "webdataset", tmp_path / "no", rows=Rows(view="night", filter="width > 1"))


# ---------------------------------------------------------------- going on, and refusing


@pytest.mark.parametrize("to", FORMATS)
def test_a_broken_export_goes_on_and_ends_as_if_undisturbed(
    to: str, city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ["base.image", "caption.text"]
    export(city, to, tmp_path / "whole", fields)
    random = dice()
    steps = random.sample(range(1, 40), 4)
    out = tmp_path / "out"
    real_rename, real_write = Path.rename, engine.write_json
    left = [0]

    def step(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    def rename(self: Path, target: Path) -> Path:
        step()
        return real_rename(self, target)

    def write_json(path: Path, value: Any) -> None:
        step()
        real_write(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        patched.setattr(engine, "write_json", write_json)
        for number in sorted(steps):
            left[0] = number
            try:
                export(city, to, out, fields)
            except KeyboardInterrupt:
                assert not (out / "semiocity.json").exists()
            else:
                break
    export(city, to, out, fields)
    assert state(out) == state(tmp_path / "whole")
    assert not (out / ".export" / "work").exists()


def test_what_is_there_is_kept_and_what_changed_is_made_again(own_city: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields = ["base.image", "word.text"]
    export(own_city, "imagefolder", out, fields)
    before = {path: path.stat().st_ino for path in out.glob("*/0*/*.png")}
    dead = Dataset.open(own_city).reader("base", 1).keys[2]
    reports: list[tuple[int, int]] = []
    export(own_city, "imagefolder", out, fields, report=lambda *facts: reports.append(facts))
    assert reports == [(4, 4)]
    assert {path: path.stat().st_ino for path in out.glob("*/0*/*.png")} == before
    # The row that had failed comes back in a new revision of the column: its shard and no other is exported again.
    add_column(own_city, failing=(), revision="bbbbbbbbbb")
    manifest = export(own_city, "imagefolder", out, fields)
    after = {path: path.stat().st_ino for path in out.glob("*/0*/*.png")}
    assert set(after) - set(before) == {next(path for path in after if path.stem == dead)}
    assert manifest["rows_total"] == 20
    export(own_city, "imagefolder", tmp_path / "fresh", fields)
    assert state(out) == state(tmp_path / "fresh")


def test_a_file_that_was_lost_is_made_again(city: Path, tmp_path: Path) -> None:
    for to, lost in (("parquet", "data/train-00001-of-00004.parquet"), ("coco", "images/train/00000002")):
        out = tmp_path / to
        export(city, to, out, ["base.image", "base.label"])
        whole = state(out)
        if (out / lost).is_dir():
            next((out / lost).iterdir()).unlink()
        else:
            (out / lost).unlink()
        export(city, to, out, ["base.image", "base.label"])
        assert state(out) == whole


def test_several_processes_give_the_same_bytes(city: Path, tmp_path: Path) -> None:
    export(city, "coco", tmp_path / "one")
    export(city, "coco", tmp_path / "two", workers=2)
    assert state(tmp_path / "one") == state(tmp_path / "two")


def test_a_damaged_shard_is_named_and_nothing_of_it_is_exported(own_city: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(own_city)
    path = ShardPath(dataset.column("base").folder, 1).tar
    reader = dataset.reader("base", 1)
    place = reader.column("image.offset")[0]
    data = bytearray(path.read_bytes())
    data[place + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"image of {reader.keys[0]} is damaged"):
        export(own_city, "parquet", tmp_path / "out")
    there = {path.name[-22:-17] for path in (tmp_path / "out" / "data").iterdir()}
    assert there == {"00000"}
    assert not (tmp_path / "out" / "semiocity.json").exists()


def test_refusals(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export(city, "parquet", out, ["base.image"])
    for more in (["--fields", "base.image", "base.label"], ["--fields", "base.image", "--split", "val"]):
        assert main(["export", str(city), "--to", "parquet", "--out", str(out), *more]) == 2
        assert "holds another export" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious").touch()
    for arguments, words in (
        (["--to", "tfrecord", "--out", str(tmp_path / "x")], "no such format; one of parquet"),
        (["--to", "parquet", "--out", str(foreign)], "not empty, and not an export"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--fields", "base.imge"], "has no field imge"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--fields", "image=base.label", "base.image"], "is taken"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--link"], "--link has no effect"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--split", "test"], "no split test"),
        (
            ["--to", "imagefolder", "--out", str(tmp_path / "x"), "--fields", "caption.text"],
            "needs the field base.image",
        ),
        (
            ["--to", "imagefolder", "--out", str(tmp_path / "x"), "--fields", "base.image", "base.label"],
            "--conditioning",
        ),
    ):
        assert main(["export", str(city), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert [path.name for path in foreign.iterdir()] == ["precious"]


def test_the_command_prints_what_it_made(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(city), "--to", "parquet", "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "semiocity.json").read_text())
    shutil.rmtree(tmp_path / "out" / ".export")
    assert main(command) == 2  # without its records it is a folder like any other
