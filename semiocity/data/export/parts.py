"""The parts of an export, a shard each: written under temporary names, made durable, moved in, recorded.

OUT/.export/parts/00000/00000012.json    what was written of shard 12; written last
OUT/.export/parts/00000/00000012.lease   somebody writes it
OUT/.export/work/                        files that are being written
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semiocity.data.export.base import STATE, Exporter, Part, Parts, part_stem
from semiocity.data.lease import Owner, lease
from semiocity.data.shard import sha256_file
from semiocity.errors import UserError
from semiocity.files import fsync, fsync_folder, read_json, write_json


def make(exporter: Exporter, out: Path, shard: int, owner: Owner) -> bool:
    """Write one shard's files unless they are there. False when somebody else is writing them."""
    path = _record(out, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    with lease(path.with_suffix(".lease"), owner) as held:
        if held and not is_made(out, shard, exporter.selection.input_digest(shard)):
            _make(exporter, out, shard)
        return held


def _make(exporter: Exporter, out: Path, shard: int) -> None:
    """Write one shard's files beside the export, make them durable, move them in, and record them."""
    work = out / STATE / "work"
    for left in work.glob(f"{shard:08d}-*"):
        shutil.rmtree(left, ignore_errors=True)  # by an attempt that died: the shard's lease is ours
    folder = work / f"{shard:08d}-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    written = exporter.write(shard, folder)
    paths = [{"path": name, **_measure(folder / name, written.known.get(name))} for name in written.paths]
    _withdraw(out, shard)
    touched = set()
    for name in written.paths:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)  # left by an attempt that ended before its record was written
        (folder / name).rename(target)
        touched.add(target.parent)
    for parent in touched:
        fsync_folder(parent)
    record = {
        "shard": shard,
        "input": exporter.selection.input_digest(shard),
        **exporter.selection.counts(shard),
        "paths": paths,
        "facts": written.facts,
    }
    write_json(_record(out, shard), record)
    shutil.rmtree(folder)


def _measure(path: Path, sha256: str | None) -> dict[str, Any]:
    """Files and bytes of a file or folder, sha256 of a file; everything is made durable on the way.

    What has a known `sha256` is a link to a shard: durable already, and not read again.
    """
    if sha256 is not None:
        return {"files": 1, "bytes": path.stat().st_size, "sha256": sha256}
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        fsync(file)
    for folder in {path, *(file.parent for file in files)}:
        if folder.is_dir():
            fsync_folder(folder)
    size = sum(file.stat().st_size for file in files)
    found: dict[str, Any] = {"files": len(files), "bytes": size}
    return found | ({"sha256": sha256_file(path)} if path.is_file() else {})


def _record(out: Path, shard: int) -> Path:
    return out / f"{part_stem(shard)}.json"


def _read(out: Path, shard: int) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = read_json(_record(out, shard))
    except (FileNotFoundError, UserError):
        return None
    return record


def is_made(out: Path, shard: int, wanted: str) -> bool:
    record = _read(out, shard)
    return (
        record is not None
        and record["input"] == wanted
        and all(_is_there(out / item["path"], item) for item in record["paths"])
    )


def _is_there(path: Path, item: dict[str, Any]) -> bool:
    if "sha256" in item:
        return path.is_file() and path.stat().st_size == item["bytes"]
    if not path.is_dir():
        return False
    files = [p for p in path.rglob("*") if p.is_file()]
    return len(files) == item["files"] and sum(p.stat().st_size for p in files) == item["bytes"]


def _withdraw(out: Path, shard: int) -> None:
    """Remove what an earlier export of this shard left, its record first: it must not vouch for new files."""
    record = _read(out, shard)
    _record(out, shard).unlink(missing_ok=True)
    for item in record["paths"] if record else ():
        path = out / item["path"]
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_surplus(out: Path, shards: int) -> None:
    """Withdraw shards that the dataset no longer has."""
    for path in sorted((out / STATE / "parts").glob("*/*.json")):
        shard = int(path.stem)
        if shard >= shards:
            _withdraw(out, shard)


class Made(Parts):
    """The parts of all shards, as their records say."""

    def __init__(self, out: Path, shards: int) -> None:
        self._out, self._shards = out, shards

    def records(self) -> Iterator[dict[str, Any]]:
        for shard in range(self._shards):
            yield read_json(_record(self._out, shard))

    def __iter__(self) -> Iterator[Part]:
        for record in self.records():
            yield Part(record["shard"], record["rows"], record["paths"], record["facts"])

    def splits(self) -> list[str]:
        return sorted({split for part in self for split, rows in part.rows.items() if rows})
