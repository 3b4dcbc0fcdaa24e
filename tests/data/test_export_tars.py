"""WebDataset, Energon and webshart: members, indexes and links."""

from __future__ import annotations

import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from exported import FIELDS, members, ours

from semiocity.data.columns import Dataset
from semiocity.data.export.engine import export
from semiocity.data.export.selection import Rows
from semiocity.data.manifest import ShardPath
from semiocity.errors import UserError


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
