"""Other programs read our shards and our exports, and see the same samples with the same bytes.

Those that must not be in our environment live in the peers' (`make peers`), whose python SEMIOCITY_PEERS names; without
it their tests skip, unless SEMIOCITY_REQUIRE names `peers`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_images import decoded

from semiocity.data.columns import Dataset
from semiocity.data.export.engine import export
from semiocity.data.manifest import ShardPath


def ours(dataset: Dataset, column: str, shard: int) -> dict[str, dict[str, bytes]]:
    """Key → member extension → bytes, through our reader."""
    reader = dataset.reader(column, shard)
    found: dict[str, dict[str, bytes]] = {}
    for i, key in enumerate(reader.keys):
        fields = {name: reader.read(i, name) for name in dataset.column(column).fields}
        row = {reader.column(f"{name}.ext")[i]: data for name, data in fields.items() if data is not None}
        if row:
            found[key] = row
    return found


def tars(dataset: Dataset) -> list[tuple[str, int, Path]]:
    return [
        (column, shard, ShardPath(dataset.column(column).folder, shard).tar)
        for column in dataset.columns
        for shard in range(dataset.shards)
    ]


def test_python_tarfile(town: Path) -> None:
    dataset = Dataset.open(town)
    for column, shard, path in tars(dataset):
        found: dict[str, dict[str, bytes]] = defaultdict(dict)
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname) == ("", "")
                key, _, extension = member.name.partition(".")
                payload = tar.extractfile(member)
                assert payload is not None
                found[key][extension] = payload.read()
        tombstones = {key: row for key, row in found.items() if "tombstone.json" in row}
        assert list(found) == dataset.reader(column, shard).keys
        assert {key: row for key, row in found.items() if key not in tombstones} == ours(dataset, column, shard)


def test_gnu_tar(town: Path, tmp_path: Path) -> None:
    program = shutil.which("tar")
    if program is None:
        pytest.skip("no tar on this machine")
    dataset = Dataset.open(town)
    for column, shard, path in tars(dataset):
        folder = tmp_path / f"{column}{shard}"
        folder.mkdir()
        result = subprocess.run([program, "-xvf", path, "-C", folder], capture_output=True, text=True, check=True)
        assert result.stderr == ""
        keys = [name.partition(".")[0] for name in result.stdout.split()]
        assert sorted(set(keys)) == sorted(dataset.reader(column, shard).keys)
        for key, row in ours(dataset, column, shard).items():
            for extension, data in row.items():
                assert (folder / f"{key}.{extension}").read_bytes() == data


def test_webdataset(town: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    dataset = Dataset.open(town)
    for column in dataset.columns:
        paths = [str(path) for name, _, path in tars(dataset) if name == column]
        samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
        keys = [key for shard in range(dataset.shards) for key in dataset.reader(column, shard).keys]
        assert [sample["__key__"] for sample in samples] == keys
        expected = {key: row for shard in range(dataset.shards) for key, row in ours(dataset, column, shard).items()}
        found = {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")} for s in samples}
        assert {key: row for key, row in found.items() if "tombstone.json" not in row} == expected


# ---------------------------------------------------------------- in the peers' environment

FIELDS = ["base.image", "base.label", "base.instance", "base.meta", "caption.text", "mask.rle"]
BASE_FIELDS = ["base.image", "base.label", "base.instance", "base.meta"]


def peers_python() -> Path:
    found = Path(os.environ.get("SEMIOCITY_PEERS", "no"))
    if found.is_file():
        return found
    reason = "SEMIOCITY_PEERS names no python of the peers' environment; `make peers` makes it"
    if "peers" in os.environ.get("SEMIOCITY_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def read_with(tool: str, folder: Path, scratch: Path, split: str = "train", path: Path | None = None) -> Any:
    """What a tool of the peers' environment sees in a folder; `path` is searched for modules first."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "PYTHONPATH": str(path or "")}
    script = Path(__file__).with_name("read_with_peers.py")
    command = [str(part) for part in (peers_python(), script, tool, folder, split)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def shas(rows: dict[str, dict[str, bytes]]) -> dict[str, dict[str, str]]:
    return {key: {ext: sha(data) for ext, data in row.items()} for key, row in rows.items()}


def rows_of(dataset: Dataset, split: str | None = None) -> dict[str, dict[str, Any]]:
    view = dataset.view(FIELDS, split)
    return {view.key(i): view.read(i) for i in range(len(view))}


@pytest.mark.parametrize("version", ["1.", "0.2."])
def test_webdataset_of_both_ages_reads_shards_and_exports(version: str, full: Dataset, tmp_path: Path) -> None:
    old = peers_python().parents[1] / "webdataset-0.2" if version == "0.2." else None
    for column in full.columns:
        (tmp_path / "all" / "shards" / column).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(full.column(column).folder, tmp_path / "all" / "shards" / column)
    export(full.path, "webdataset", tmp_path / "all" / "export", FIELDS)
    found = read_with("webdataset", tmp_path / "all", tmp_path, path=old)
    assert found["version"].startswith(version)
    for column in full.columns:
        expected = {key: row for shard in range(full.shards) for key, row in ours(full, column, shard).items()}
        rows = {key: row for key, row in found["rows"][f"shards/{column}"].items() if "tombstone.json" not in row}
        assert rows == shas(expected)
    for split in ("train", "val"):
        masks = {key: row["mask.json"] for key, row in found["rows"][f"export/{split}"].items()}
        assert masks == {key: sha(row["mask.rle"]) for key, row in rows_of(full, split).items()}


def test_huggingface_datasets_reads_our_tars_where_they_are(full: Dataset, tmp_path: Path) -> None:
    rows = read_with("datasets_tars", full.column("base").folder, tmp_path)["rows"]
    assert set(rows) == set(rows_of(full))
    for key, own in rows_of(full).items():
        assert rows[key]["png"] == sha(own["base.image"])
        assert rows[key]["label.png"] == sha(own["base.label"])
        assert rows[key]["json"] == json.loads(own["base.meta"])


@pytest.mark.parametrize(("to", "tool"), [("huggingface", "datasets_disk"), ("parquet", "datasets_folder")])
def test_huggingface_datasets_reads_its_exports(to: str, tool: str, full: Dataset, tmp_path: Path) -> None:
    export(full.path, to, tmp_path / "out", ["base", "text=caption.text", "caption.short"])
    found = read_with(tool, tmp_path / "out", tmp_path, "val")
    assert found["splits"] == ["train", "val"]
    assert found["classes"] == [spec.name for spec in full.classes]
    expected = rows_of(full, "val")
    assert set(found["rows"]) == set(expected)
    for key, own in expected.items():
        row = found["rows"][key]
        assert row["image"] == sha(decoded(own["base.image"]).tobytes())
        assert row["text"].encode() == own["caption.text"]
        assert row["classes"] == np.unique(decoded(own["base.label"])).tolist()
        assert row["width"] == 32


@pytest.mark.parametrize(
    "options", [{}, {"conditioning": "base.label"}, {"conditioning": "base.label", "metadata": "csv"}]
)
def test_huggingface_datasets_reads_picture_folders(options: dict[str, str], full: Dataset, tmp_path: Path) -> None:
    export(full.path, "imagefolder", tmp_path / "out", options=options)
    found = read_with("datasets_folder", tmp_path / "out", tmp_path)
    for key, own in rows_of(full, "train").items():
        row = found["rows"][key]
        assert row["image"] == sha(decoded(own["base.image"]).tobytes())
        assert row["text"].encode() == own["caption.text"]
        if options:
            assert tuple(row["conditioning"]) == full.palette[decoded(own["base.label"])[0, 0]]
    assert len(found["rows"]) == 14


def test_energon_reads_shards_where_they_are_and_joined_ones(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "energon", tmp_path / "linked", BASE_FIELDS, options={"link": True})
    rows = read_with("energon", tmp_path / "linked", tmp_path, "all")["rows"]
    expected = {key: row for shard in range(full.shards) for key, row in ours(full, "base", shard).items()}
    assert rows == shas(expected)
    export(full.path, "energon", tmp_path / "pairs", ["base.image", "caption.text"])
    rows = read_with("energon", tmp_path / "pairs", tmp_path, "val")["rows"]
    expected_val = rows_of(full, "val")
    assert set(rows) == set(expected_val)
    for key, own in expected_val.items():
        assert rows[key]["kind"] == "CaptioningSample"
        assert rows[key]["caption"].encode() == own["caption.text"]


def test_energon_itself_would_write_the_same_indexes(full: Dataset, tmp_path: Path) -> None:
    export(full.path, "energon", tmp_path / "out", FIELDS)
    made = read_with("energon_index", tmp_path / "out", tmp_path)
    ours_ = {
        str(path.relative_to(tmp_path / "out")): {"rows": path.stat().st_size // 8 - 1, "index": sha(path.read_bytes())}
        for path in (tmp_path / "out").rglob("*.tar.idx")
    }
    assert {f"{name}.idx": facts for name, facts in made.items()} == ours_


@pytest.mark.parametrize(
    "fields", [["base.image", "base.meta", "caption.text"], ["base.image", "mask.rle", "caption.text"]]
)
def test_webshart(fields: list[str], full: Dataset, tmp_path: Path) -> None:
    export(full.path, "webshart", tmp_path / "out", fields)
    rows = read_with("webshart", tmp_path / "out", tmp_path)["rows"]
    pictures = {name.partition(".")[0]: row for name, row in rows.items() if name.endswith(".png")}
    assert pictures == {
        key: {"image": sha(own["base.image"]), "captions": own["caption.text"].decode()}
        for key, own in rows_of(full, "train").items()
    }


@pytest.mark.parametrize("source", ["base.instance", "mask.rle"])
def test_fiftyone_parses_labels_of_things_and_of_masks(source: str, full: Dataset, tmp_path: Path) -> None:
    export(full.path, "fiftyone", tmp_path / "out", ["base.image", "base.label", source])
    rows = read_with("fiftyone", tmp_path / "out", tmp_path)["rows"]
    names = [spec.name for spec in full.classes]
    expected = rows_of(full, "train")
    assert set(rows) == set(expected)
    for key, own in expected.items():
        label = decoded(own["base.label"])
        if source == "mask.rle":
            masks = json.loads(own["mask.rle"])["masks"]
            assert [row[1:] for row in rows[key]] == [[mask["bbox"], mask["area"]] for mask in masks]
        else:
            instance = decoded(own["base.instance"])
            ids = [i for i in np.unique(instance) if i]
            assert [row[2] for row in rows[key]] == [int((instance == i).sum()) for i in ids]
            assert [row[0] for row in rows[key]] == [names[np.bincount(label[instance == i]).argmax()] for i in ids]
