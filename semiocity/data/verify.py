"""Reading a dataset again from the first byte to the last, and naming every fault.

Nothing is trusted twice: tar headers are parsed (not through the index), payloads are compared with the index and the
receipt, receipts with the manifests, columns with the base column, counts with the plan.

The quick way looks at sizes and compacted receipts: it lists each folder and opens one file a thousand shards of a
column, and the receipts that are younger than that file.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import accumulate, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from semiocity.data.layout import BASE, FOLDER_SHARDS, ShardPath, column_folder
from semiocity.data.manifest import TO_CATCH_UP, behind, read_manifest
from semiocity.data.receipts import ShardEntries
from semiocity.data.takedown import remains
from semiocity.data.verify_column import ColumnCheck, Revision, Span
from semiocity.data.verify_shard import MERGE, Fault, ShardCheck, keys_of
from semiocity.errors import UserError
from semiocity.files import read_json

__all__ = ["Fault", "show", "verify"]

UNIT_SHARDS = 25
"""Shards that a process reads before it fetches more work."""


def verify(dataset: Path, quick: bool = False, workers: int = 1, part: tuple[int, int] = (0, 1)) -> list[Fault]:
    """Every fault of a dataset; an empty list when all is well. `quick` compares sizes and receipts, reads no payload.

    `workers` processes read at the same time. `part` (i, n) checks the i-th of n parts, counted from 0: array tasks
    share the thousands. Raises UserError when there is no dataset to verify.
    """
    dataset = Path(dataset)
    manifest = read_manifest(dataset)
    shards = int(manifest["columns"][BASE]["shards"])
    faults = list(_counts(dataset, manifest)) if part[0] == 0 else []
    faults += _remains(dataset) if part[0] == 0 else []
    columns: list[ColumnCheck] = []
    for name in sorted(manifest["columns"], key=lambda name: (name != BASE, name)):
        try:
            columns.append(ColumnCheck.open(dataset, name, manifest["columns"]))
        except (UserError, KeyError, TypeError) as error:
            where = str(column_folder(dataset, name, manifest["columns"][name]["revision"]) / "manifest.json")
            faults.append(Fault(where, f"cannot be read ({error})", MERGE, column=name))
    shared: dict[Revision, ShardEntries | None] = {(c.name, c.folder.name): c.entries for c in columns}
    for column in columns:
        column.parents = shared
    for column in columns if part[0] == 0 else ():
        faults += column.strangers()
        if late := behind(manifest, column.name):
            faults.append(Fault(str(column.folder), late, TO_CATCH_UP, column=column.name))
    mine = _part(range(-(-shards // FOLDER_SHARDS)), part)
    sums = {column.name: _Sum() for column in columns}
    for number in mine:
        for column in columns:
            faults += sums[column.name].add(column, number)
            if quick and column.span(number):
                faults += column.quick(number)
    if part == (0, 1):
        for column in columns:
            faults += sums[column.name].compare(column)
    if not quick:
        faults += _contents(columns, range(mine.start * FOLDER_SHARDS, min(mine.stop * FOLDER_SHARDS, shards)), workers)
    order = {column.name: i for i, column in enumerate(columns)}
    return sorted(faults, key=lambda f: (order.get(f.column or "", -1), -1 if f.shard is None else f.shard))


def show(dataset: Path, quick: bool, as_json: bool, workers: int = 1, part: tuple[int, int] = (0, 1)) -> int:
    """Verify and print; the exit status is 0 only when there is no fault. Notes are printed and do no harm."""
    found = verify(dataset, quick, workers, part)
    faults = [item for item in found if item.level == "fault"]
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=1, sort_keys=True))
        return 1 if faults else 0
    for item in found:
        print(item if item.level == "fault" else f"note: {item}")
    columns = read_manifest(dataset)["columns"]
    shards = sum(column["shards"] for column in columns.values())
    what = "receipts and sizes of" if quick else "every byte of"
    which = "" if part[1] == 1 else f"part {part[0]} of {part[1]} of "
    verdict = f"{len(faults)} faults" if faults else "all is well"
    print(f"{dataset}: {what} {which}{shards} shards in {len(columns)} columns read again: {verdict}")
    return 1 if faults else 0


def _remains(dataset: Path) -> Iterator[Fault]:
    """What is left of rows that were taken down."""
    remedy = f"run `semiocity remove {dataset} --apply`"
    try:
        for where, what in remains(dataset):
            yield Fault(str(where), what, remedy)
    except (UserError, OSError, ValueError, pa.ArrowException) as error:
        yield Fault(str(dataset), f"cannot tell whether rows that were taken down are gone ({error})", remedy)


def _part(thousands: range, part: tuple[int, int]) -> range:
    i, n = part
    if not 0 <= i < n:
        raise UserError(f"part {i}/{n}: there are the parts 0/{n} to {n - 1}/{n}")
    return range(len(thousands) * i // n, len(thousands) * (i + 1) // n)


def _counts(dataset: Path, manifest: dict[str, Any]) -> Iterator[Fault]:
    where = str(dataset / "manifest.json")
    accounted = manifest["rows"] + sum(manifest["rejected"].values())
    if accounted != manifest["files_seen"]:
        yield Fault(where, f"rows and rejected files are {accounted}, files seen {manifest['files_seen']}", MERGE)
    base = manifest["columns"][BASE]
    if (base["rows"], base["digest"]) != (manifest["rows"], manifest["digest"]):
        yield Fault(where, "rows or digest differ from those of its own base column", MERGE, column=BASE)
    plan = dataset / "plans" / base["revision"] / "plan.json"
    try:
        planned = read_json(plan)["shards"]
    except (FileNotFoundError, UserError) as error:
        yield Fault(str(plan), f"cannot be read ({error})", "run `semiocity pack` again: it plans again", column=BASE)
    else:
        if planned != base["shards"]:
            yield Fault(str(plan), f"plans {planned} shards, the manifest has {base['shards']}", MERGE, column=BASE)


class _Sum:
    """What a column's manifest says of the whole, added up again from the compacted receipts."""

    def __init__(self) -> None:
        self.rows = 0
        self.digest = hashlib.sha256()
        self.whole = True

    def add(self, column: ColumnCheck, number: int) -> Iterator[Fault]:
        try:
            thousand = column.entries.thousand(number)
        except UserError as error:
            self.whole = False
            where = f"{column.folder}/{number:05d}"
            remedy = f"run `semiocity repair {column.dataset} --apply`"
            yield Fault(where, f"compacted receipts cannot be read ({error})", remedy, column=column.name)
            return
        if thousand is None:
            return
        facts = thousand.facts
        self.rows += sum(facts["rows"])
        for shard, keys, sha256 in zip(facts["shards"], facts["keys_digest"], facts["sha256"]):
            self.digest.update(f"{shard} {keys} {sha256}\n".encode())

    def compare(self, column: ColumnCheck) -> Iterator[Fault]:
        where = str(column.folder / "manifest.json")
        digest = self.digest.hexdigest()
        if self.whole and {column.manifest["digest"], column.listed["digest"]} != {digest}:
            yield Fault(where, "its digest is not that of its shards", MERGE, column=column.name)
        if self.whole and self.rows != column.listed["rows"]:
            yield Fault(where, "its shards' rows do not add up", MERGE, column=column.name)


def _contents(columns: list[ColumnCheck], shards: range, workers: int) -> Iterator[Fault]:
    """Every byte of some shards of all columns, then their keys from shard to shard."""
    units = [range(i, min(i + UNIT_SHARDS, shards.stop)) for i in range(shards.start, shards.stop, UNIT_SHARDS)]
    spans: dict[str, list[Span]] = {column.name: [] for column in columns}
    for faults, found in _run(columns, units, min(workers, len(units))):
        yield from faults
        for name in found:
            spans[name] += found[name]
    for column in columns:
        yield from _order(column, spans[column.name], shards.start)


def _run(
    columns: list[ColumnCheck], units: list[range], workers: int
) -> Iterator[tuple[list[Fault], dict[str, list[Span]]]]:
    if workers <= 1:
        yield from map(partial(_unit, columns), units)
        return
    # Not forked: pyarrow has threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield from pool.map(_unit, repeat(columns), units)


def _unit(columns: list[ColumnCheck], shards: range) -> tuple[list[Fault], dict[str, list[Span]]]:
    faults: list[Fault] = []
    spans = {}
    for column in columns:
        found, spans[column.name] = column.full(shards)
        faults += found
    return faults, spans


def _order(column: ColumnCheck, spans: list[Span], start: int) -> Iterator[Fault]:
    """Keys ascend in each part of the plan, and none occurs twice. `spans` are those of the shards from `start`."""
    borders = _borders(column)
    done: list[list[Span]] = []
    now = _before(column, start)
    for span in spans:
        if now and bisect_right(borders, now[-1].shard) != bisect_right(borders, span.shard):
            done, now = [*done, now], []
        check = ShardCheck(ShardPath(column.folder, span.shard))
        highest = max((other.last for other in now), default="") if now and now[-1].last >= span.first else ""
        others = [other for other in now if other.last >= span.first and other.first <= span.last] if highest else []
        others += [other for part in done for other in _overlapping(part, span)]
        mine = set(keys_of(check.path)) if others else set()
        twice = [(key, o.shard) for o in others for key in keys_of(ShardPath(column.folder, o.shard)) if key in mine]
        for key, shard in twice:
            yield check.fault(f"the same key as in shard {shard:08d}", key=key)
        if highest >= span.first and not twice:
            yield check.fault(f"keys out of order: {span.first} comes after {highest} of shards before it")
        now.append(span._replace(last=max(span.last, highest)))


def _overlapping(part: list[Span], span: Span) -> Iterator[Span]:
    """Shards of a part of the plan, in which keys ascend, that may hold keys of `span`."""
    for other in part[bisect_left(part, span.first, key=lambda other: other.last) :]:
        if other.first > span.last:
            return
        yield other


def _borders(column: ColumnCheck) -> list[int]:
    """Numbers of the first shards of the parts of base's plan: rows that were added later begin anew."""
    try:
        parts = read_json(column.dataset / "plans" / column.base.name / "plan.json")["parts"]
        return list(accumulate((len(part["offsets"]) for part in parts), initial=0))
    except (FileNotFoundError, UserError, KeyError):
        return [0]  # said by _counts


def _before(column: ColumnCheck, start: int) -> list[Span]:
    """The span of the shard before `start`, when it can be read; its own faults are another part's."""
    with suppress(OSError, ValueError, pa.ArrowException):
        if start and (keys := keys_of(ShardPath(column.folder, start - 1))):
            return [Span(start - 1, keys[0], keys[-1])]
    return []
