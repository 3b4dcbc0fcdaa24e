"""Other programs read our shards, and see the same samples with the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest

from semiocity.data.columns import Dataset
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
