"""Exporting: shard by shard under temporary names, each with a record, so that a second call goes on where one broke.

OUT/semiocity.json               what the export holds; written last
OUT/.export/export.json          what was asked for: another export is refused this folder
OUT/.export/parts/00000/…        a record a shard, and the pieces of files that span shards
OUT/.export/work/                files that are being written
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from semiocity.config import check, fsync_folder, read_json, write_json
from semiocity.data.columns import Dataset
from semiocity.data.export.base import MANIFEST, STATE, Exporter, Options, Part, Parts, part_stem
from semiocity.data.export.selection import Rows, Selection, parse_fields, rows_of
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import BASE, read_column_manifest
from semiocity.data.shard import sha256_file
from semiocity.errors import UserError

FORMATS = {
    "parquet": "semiocity.data.export.parquet:Parquet",
    "huggingface": "semiocity.data.export.huggingface:HuggingFace",
    "coco": "semiocity.data.export.coco:Coco",
    "fiftyone": "semiocity.data.export.coco:FiftyOne",
    "webdataset": "semiocity.data.export.tars:WebDataset",
    "energon": "semiocity.data.export.energon:Energon",
    "webshart": "semiocity.data.export.webshart:Webshart",
    "imagefolder": "semiocity.data.export.imagefolder:ImageFolder",
}
"""Format → the class that writes it; imported when it is chosen."""

Report = Callable[[int, int], None]


def export(
    dataset: Path,
    to: str,
    out: Path,
    fields: Sequence[str] = (),
    rows: Rows = Rows(),  # noqa: B008 - immutable
    options: Mapping[str, Any] | None = None,
    workers: int = 1,
    report: Report = lambda done, shards: None,
) -> dict[str, Any]:
    """Export a dataset into the folder `out` and return the export's manifest.

    Shards that are there already, from the same bytes with the same wishes, are kept. `report` gets the number of
    finished shards and of all. Raises UserError for wishes that cannot be met, and when `out` holds something else.
    """
    out = Path(out).absolute()
    job = _Job(str(Path(dataset).absolute()), to, str(out), tuple(fields), rows, dict(options or {}))
    exporter = job.exporter()
    (out / STATE).mkdir(parents=True, exist_ok=True) if _may_use(out, job, exporter) else None
    with lease(out / STATE / "lease", Owner.here("export")) as held:
        if not held:
            raise UserError(f"{out}: another export is writing into this folder")
        shutil.rmtree(out / STATE / "work", ignore_errors=True)
        write_json(out / STATE / "export.json", job.identity(exporter))
        _remove_surplus(out, exporter.selection.shards)
        _make_parts(job, exporter, workers, report)
        parts = _Parts(out, exporter.selection.shards)
        files = exporter.finish(parts, out)
        manifest = _manifest(job, exporter, parts, files)
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / STATE / "work", ignore_errors=True)
    return manifest


class _Job:
    """What was asked for; plain values, so that worker processes can be handed it."""

    def __init__(
        self, dataset: str, to: str, out: str, fields: tuple[str, ...], rows: Rows, options: dict[str, Any]
    ) -> None:
        self.dataset, self.to, self.out = dataset, to, out
        self.fields, self.rows, self.options = fields, rows, options

    def exporter(self) -> Exporter:
        if self.to not in FORMATS:
            raise UserError(f"--to {self.to}: there is no such format; one of {', '.join(FORMATS)}")
        module, _, name = FORMATS[self.to].partition(":")
        kind: type[Exporter] = getattr(import_module(module), name)
        dataset = Dataset.open(Path(self.dataset))
        options = check(self.options, Options, where="export")
        given = options.model_dump(exclude_defaults=True)
        if unused := sorted(set(given) - set(kind.uses)):
            raise UserError(f"--{unused[0]} has no effect with --to {self.to}")
        dataset = rows_of(dataset, (), self.rows).dataset
        fields = parse_fields(dataset, self.fields or kind.default_fields(dataset))
        return kind(Selection(dataset, fields, self.rows), options)

    def identity(self, exporter: Exporter) -> dict[str, Any]:
        """What makes it this export, whatever the dataset's bytes are now."""
        return {
            "export": self.to,
            "version": exporter.version,
            "dataset": exporter.selection.dataset.name,
            "fields": exporter.selection.fields,
            **asdict(self.rows),
            "options": exporter.options.model_dump(mode="json"),
        }


def _may_use(out: Path, job: _Job, exporter: Exporter) -> bool:
    """Whether `out` is new or holds this very export. Raises UserError otherwise."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file of this name is in the way")
    if not out.exists() or not any(out.iterdir()):
        return True
    try:
        found = read_json(out / STATE / "export.json")
    except FileNotFoundError:
        if [entry.name for entry in out.iterdir()] == [STATE]:
            return True  # an export that broke off before anything was written
        raise UserError(f"{out}: not empty, and not an export; choose another folder") from None
    wanted = job.identity(exporter)
    if found != wanted:
        named = [name for name in wanted if found.get(name) != wanted[name]]
        raise UserError(
            f"{out}: holds another export (it differs in: {', '.join(named)}); choose another folder, or remove it"
        )
    return True


# ---------------------------------------------------------------- parts


def _make_parts(job: _Job, exporter: Exporter, workers: int, report: Report) -> None:
    out, shards = Path(job.out), exporter.selection.shards
    todo = [shard for shard in range(shards) if not _is_made(out, shard, exporter.selection.input_digest(shard))]
    report(shards - len(todo), shards)
    if workers <= 1 or len(todo) <= 1:
        for done, shard in enumerate(todo, start=1):
            _make(exporter, out, shard)
            report(shards - len(todo) + done, shards)
        return
    with ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn"), _open_in_worker, (job,)) as pool:
        futures = [pool.submit(_make_in_worker, shard) for shard in todo]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(shards - len(todo) + done, shards)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_in_worker: dict[str, Any] = {}


def _open_in_worker(job: _Job) -> None:
    _in_worker.update(exporter=job.exporter(), out=Path(job.out))


def _make_in_worker(shard: int) -> None:
    _make(_in_worker["exporter"], _in_worker["out"], shard)


def _make(exporter: Exporter, out: Path, shard: int) -> None:
    """Write one shard's files beside the export, make them durable, move them in, and record them."""
    folder = out / STATE / "work" / f"{shard:08d}-{uuid.uuid4().hex}"
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
        _fsync(file)
    for folder in {path, *(file.parent for file in files)}:
        if folder.is_dir():
            fsync_folder(folder)
    size = sum(file.stat().st_size for file in files)
    found: dict[str, Any] = {"files": len(files), "bytes": size}
    return found | ({"sha256": sha256_file(path)} if path.is_file() else {})


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(out: Path, shard: int) -> Path:
    return out / f"{part_stem(shard)}.json"


def _read(out: Path, shard: int) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = read_json(_record(out, shard))
    except (FileNotFoundError, UserError):
        return None
    return record


def _is_made(out: Path, shard: int, wanted: str) -> bool:
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


def _remove_surplus(out: Path, shards: int) -> None:
    """Withdraw shards that the dataset no longer has."""
    for path in sorted((out / STATE / "parts").glob("*/*.json")):
        shard = int(path.stem)
        if shard >= shards:
            _withdraw(out, shard)


class _Parts(Parts):
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


# ---------------------------------------------------------------- the manifest


def _manifest(job: _Job, exporter: Exporter, parts: _Parts, files: list[str]) -> dict[str, Any]:
    """Nothing in it changes from one run to the next, so equal exports are equal files."""
    selection = exporter.selection
    dataset = selection.dataset
    totals: dict[str, Counter[str]] = {"rows": Counter(), "tombstones": Counter(), "licenses": Counter()}
    count = size = 0
    for record in parts.records():
        for name, total in totals.items():
            total.update(record[name])
        shown = [item for item in record["paths"] if not item["path"].startswith(f"{STATE}/")]
        count += sum(item["files"] for item in shown)
        size += sum(item["bytes"] for item in shown)
    return {
        "format": 1,
        **job.identity(exporter),
        "dataset_digest": dataset.digest,
        "view_digest": selection.view.digest,
        "columns": {name: _provenance(dataset, name) for name in selection.columns},
        "classes": [spec.model_dump(mode="json", include={"name", "color"}) for spec in dataset.classes],
        "ignore_id": dataset.ignore_id,
        "note": dataset.recipe["note"],
        "license": dataset.recipe["license"],
        "licenses": {name or "not stated": rows for name, rows in sorted(totals["licenses"].items())},
        "rows": dict(sorted(totals["rows"].items())),
        "rows_total": sum(totals["rows"].values()),
        "left_out": {
            "tombstones": dict(sorted(totals["tombstones"].items())),
            "rows": _rows_there(selection) - sum(totals["rows"].values()),
        },
        "shards": selection.shards,
        "files": count + len(files),
        "bytes": size + sum((Path(job.out) / name).stat().st_size for name in files),
        "spanning_files": {name: sha256_file(Path(job.out) / name) for name in sorted(files)},
    }


def _rows_there(selection: Selection) -> int:
    """Rows that base has of the split, or in all where splits are another column's."""
    by_base = selection.view.selection.split_by == f"{BASE}.split"
    return selection.dataset.rows(selection.chosen.split if by_base else None)


def _provenance(dataset: Dataset, column: str) -> dict[str, Any]:
    found = dataset.column(column)
    manifest = read_column_manifest(dataset.path, column, found.revision)
    return {
        "revision": found.revision,
        "digest": found.digest,
        **{name: manifest.get(name) for name in ("stage", "model", "parents")},
    }
