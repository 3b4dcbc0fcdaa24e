"""Parquet and `datasets` folders: what a reader finds is what our own reader gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported import FIELDS, ours
from make_images import add_column, city_recipe, decoded, packed

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.export.engine import export
from semiocity.data.export.selection import Rows
from semiocity.data.lease import Owner
from semiocity.data.takedown import carry_out, request


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


def test_rows_that_were_taken_down_are_not_counted_as_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    town = tmp_path / "town"
    packed(city_recipe(), town)
    base = Dataset.open(town).reader("base", 0)
    add_column(town, failing=(base.keys[1],))
    carry_out(town, request(town, [base.keys[0]], "asked for"), Owner.here())
    out = str(tmp_path / "out")
    assert main(["export", str(town), "--to", "parquet", "--out", out, "--fields", "base.image", "word.text"]) == 0
    assert "18 rows" in (said := capsys.readouterr().out) and "; 1 rows left out (failed: 1 in word)" in said
