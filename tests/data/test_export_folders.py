"""Folders as diffusers' scripts read them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from exported import FIELDS, ours
from make_images import decoded

from semiocity.data.columns import Dataset
from semiocity.data.export.engine import export
from semiocity.errors import UserError


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
