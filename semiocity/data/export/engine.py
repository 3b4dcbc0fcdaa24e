"""Exporting: shard by shard, each with a record, so that a second call goes on where one broke.

OUT/semiocity.json               what the export holds; written last
OUT/.export/export.json          what was asked for: another export is refused this folder
OUT/.export/…                    see parts.py

In one process, in several on this machine, or as an array job (`task` and `finish`): whoever it is, a shard that is
there is not made again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.config import write_json
from semiocity.data.columns import Dataset
from semiocity.data.export import parts
from semiocity.data.export.base import MANIFEST, STATE, Exporter
from semiocity.data.export.selection import Rows, Selection
from semiocity.data.export.wish import FORMATS, Wish, check_folder, inputs_of
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import BASE, read_column_manifest
from semiocity.data.shard import sha256_file
from semiocity.errors import UserError
from semiocity.files import read_json

__all__ = ["FORMATS", "export", "finish", "is_finished", "missing", "plan", "task"]

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
    wish = Wish(str(Path(dataset).absolute()), to, str(Path(out).absolute()), tuple(fields), rows, dict(options or {}))
    exporter = wish.exporter()
    begin(wish, exporter)
    _make_all(wish, exporter, workers, report)
    return _finish(wish, exporter)


def begin(wish: Wish, exporter: Exporter) -> None:
    """Take the folder for this export. Raises UserError when it holds something else."""
    check_folder(wish, exporter)
    path = Path(wish.out) / STATE / "export.json"
    if not path.exists():
        write_json(path, wish.identity(exporter))


# ---------------------------------------------------------------- as an array job


class Planned(NamedTuple):
    """What the tasks of an array are about."""

    inputs: str
    """Changes with the dataset: what the tasks must agree on."""
    shards: int
    columns: dict[str, str]
    """Column → revision of what is read."""


def plan(wish: Wish, dry_run: bool = False) -> Planned:
    """Check an export and, unless `dry_run`, take the folder for it, with the numbers of rows that tasks count from."""
    exporter = wish.exporter()
    inputs, selection = inputs_of(exporter), exporter.selection
    check_folder(wish, exporter)
    if not dry_run:
        begin(wish, exporter)
        write_json(_sizes(wish), {"inputs": inputs, "starts": selection.starts})
    columns = {name: selection.dataset.column(name).revision for name in selection.columns}
    return Planned(inputs, selection.shards, columns)


def missing(wish: Wish, inputs: str) -> list[int]:
    """Shards whose part is not there, or was made from other bytes."""
    return _todo(Path(wish.out), _same(wish, inputs))


def is_finished(wish: Wish, inputs: str) -> bool:
    """Whether the whole export is there."""
    try:
        found = read_json(Path(wish.out) / MANIFEST)
    except FileNotFoundError:
        return False
    return found.get("inputs") == inputs and not missing(wish, inputs)


def task(
    wish: Wish,
    inputs: str,
    shards: Sequence[int],
    owner: Owner,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> bool:
    """Make some shards' parts. False when `stop` said to leave early.

    Raises UserError when the dataset is another than when `inputs` was told: all tasks must export the same.
    """
    exporter = _same(wish, inputs)
    begin(wish, exporter)
    for done, shard in enumerate(shards):
        if stop():
            return False
        if not parts.make(exporter, Path(wish.out), shard, owner):
            report({"leased": shard})
        report({"shard": shard, "done_shards": done + 1, "shards": len(shards)})
    return True


def finish(wish: Wish, inputs: str) -> dict[str, Any]:
    """Write what spans shards, and the manifest. Raises UserError naming a shard that is missing."""
    return _finish(wish, _same(wish, inputs))


def _same(wish: Wish, inputs: str) -> Exporter:
    exporter = wish.exporter()
    if inputs_of(exporter) != inputs:
        raise UserError(f"{wish.dataset}: it has changed since the export was submitted; submit it again")
    with suppress(FileNotFoundError):
        counted = read_json(_sizes(wish))
        if counted["inputs"] == inputs:
            exporter.selection.starts = counted["starts"]  # else every task opens every index that has failed rows
    return exporter


def _sizes(wish: Wish) -> Path:
    return Path(wish.out) / STATE / "sizes.json"


# ---------------------------------------------------------------- all shards


def _todo(out: Path, exporter: Exporter) -> list[int]:
    selection = exporter.selection
    return [s for s in range(selection.shards) if not parts.is_made(out, s, selection.input_digest(s))]


def _make_all(wish: Wish, exporter: Exporter, workers: int, report: Report) -> None:
    out, shards, owner = Path(wish.out), exporter.selection.shards, Owner.here("export")
    todo = _todo(out, exporter)
    report(shards - len(todo), shards)
    if workers <= 1 or len(todo) <= 1:
        for done, shard in enumerate(todo, start=1):
            parts.make(exporter, out, shard, owner)
            report(shards - len(todo) + done, shards)
        return
    with ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn"), _open_in_worker, (wish,)) as pool:
        futures = [pool.submit(_make_in_worker, shard) for shard in todo]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(shards - len(todo) + done, shards)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_in_worker: dict[str, Any] = {}


def _open_in_worker(wish: Wish) -> None:
    _in_worker.update(exporter=wish.exporter(), out=Path(wish.out))


def _make_in_worker(shard: int) -> None:
    parts.make(_in_worker["exporter"], _in_worker["out"], shard, Owner.here("export"))


# ---------------------------------------------------------------- the end


def _finish(wish: Wish, exporter: Exporter) -> dict[str, Any]:
    out = Path(wish.out)
    with lease(out / STATE / "lease", Owner.here("export")) as held:
        if not held:
            raise UserError(f"{out}: another export is writing into this folder")
        check_folder(wish, exporter)  # two may have taken a new folder at the same moment
        if absent := _todo(out, exporter):
            raise UserError(
                f"{out}: {len(absent)} shards are not there, the first is {absent[0]:08d}: another export is writing "
                "them, or has ended before; export again"
            )
        parts.remove_surplus(out, exporter.selection.shards)
        made = parts.Made(out, exporter.selection.shards)
        manifest = _manifest(wish, exporter, made, exporter.finish(made, out))
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / STATE / "work", ignore_errors=True)
    return manifest


def _manifest(wish: Wish, exporter: Exporter, made: parts.Made, files: list[str]) -> dict[str, Any]:
    """Nothing in it changes from one run to the next, so equal exports are equal files."""
    selection = exporter.selection
    dataset = selection.dataset
    totals: dict[str, Counter[str]] = {"rows": Counter(), "tombstones": Counter(), "licenses": Counter()}
    count = size = 0
    for record in made.records():
        for name, total in totals.items():
            total.update(record[name])
        shown = [item for item in record["paths"] if not item["path"].startswith(f"{STATE}/")]
        count += sum(item["files"] for item in shown)
        size += sum(item["bytes"] for item in shown)
    return {
        "format": 1,
        **wish.identity(exporter),
        "inputs": inputs_of(exporter),
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
        "bytes": size + sum((Path(wish.out) / name).stat().st_size for name in files),
        "spanning_files": {name: sha256_file(Path(wish.out) / name) for name in sorted(files)},
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
