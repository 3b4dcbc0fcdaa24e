"""Reading a dataset again from the first byte to the last, and naming every fault.

Nothing is trusted twice: tar headers are parsed (not through the index), payloads are compared with the index and the
receipt, receipts with the manifests, columns with the base column, counts with the plan.

The quick way looks at sizes and compacted receipts: it lists each folder and opens one file a thousand shards of a
column, and the receipts that are younger than that file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from semiocity.data.layout import BASE, FOLDER_SHARDS, SUFFIXES, ShardPath, column_folder, read_receipt, thousand_folder
from semiocity.data.manifest import behind, named_files, read_column_manifest, read_manifest, shard_entries
from semiocity.data.receipts import ShardEntries, Thousand
from semiocity.data.takedown import remains
from semiocity.data.verify_shard import MERGE, Fault, ShardCheck, keys_of
from semiocity.errors import UserError
from semiocity.files import read_json

__all__ = ["Fault", "show", "verify"]

KNOWN = re.compile(r"(\d{8})\.(tar|parquet|json|lease)")
UNIT_SHARDS = 25
"""Shards that a process reads before it fetches more work."""

DEAD = "left by an attempt that died, or of one at work now; the next attempt removes it, or `semiocity gc`"


Revision = tuple[str, str]
"""Column and revision."""


class Span(NamedTuple):
    """First and last key of a shard."""

    shard: int
    first: str
    last: str


def verify(dataset: Path, quick: bool = False, workers: int = 1, part: tuple[int, int] = (0, 1)) -> list[Fault]:
    """Every fault of a dataset; an empty list when all is well. `quick` compares sizes and receipts, reads no payload.

    `workers` processes read at the same time. `part` (i, n) checks the i-th of n parts, counted from 0: array tasks
    share the thousands. Raises UserError when there is no dataset to verify.
    """
    dataset = Path(dataset)
    manifest = read_manifest(dataset)
    shards = int(manifest["columns"][BASE]["shards"])
    faults = list(_counts(dataset, manifest)) if part[0] == 0 else []
    if part[0] == 0:
        remedy = f"run `semiocity remove {dataset} --apply`"
        faults += [Fault(str(where), what, remedy) for where, what in remains(dataset)]
    columns: list[_Column] = []
    for name in sorted(manifest["columns"], key=lambda name: (name != BASE, name)):
        try:
            columns.append(_Column.open(dataset, name, manifest["columns"]))
        except (UserError, KeyError, TypeError) as error:
            where = str(column_folder(dataset, name, manifest["columns"][name]["revision"]) / "manifest.json")
            faults.append(Fault(where, f"cannot be read ({error})", MERGE, column=name))
    shared: dict[Revision, ShardEntries | None] = {(c.name, c.folder.name): c.entries for c in columns}
    for column in columns:
        column.parents = shared
    for column in columns if part[0] == 0 else ():
        faults += column.strangers()
        if late := behind(manifest, column.name):
            faults.append(Fault(str(column.folder), late, "run its job again", column=column.name))
    mine = _part(range(-(-shards // FOLDER_SHARDS)), part)
    sums = {column.name: _Sum() for column in columns}
    for number in mine:
        for column in columns:
            faults += sums[column.name].add(column, number)
            if quick:
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
        yield Fault(str(plan), f"cannot be read ({error})", "run `semiocity pack` again: it plans anew", column=BASE)
    else:
        if planned != base["shards"]:
            yield Fault(str(plan), f"plans {planned} shards, the manifest has {base['shards']}", MERGE, column=BASE)


class _Sum:
    """What a column's manifest says of the whole, added up again from the compacted receipts."""

    def __init__(self) -> None:
        self.rows = 0
        self.digest = hashlib.sha256()
        self.whole = True

    def add(self, column: _Column, number: int) -> Iterator[Fault]:
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

    def compare(self, column: _Column) -> Iterator[Fault]:
        where = str(column.folder / "manifest.json")
        digest = self.digest.hexdigest()
        if self.whole and {column.manifest["digest"], column.listed["digest"]} != {digest}:
            yield Fault(where, "its digest is not that of its shards", MERGE, column=column.name)
        if self.whole and self.rows != column.listed["rows"]:
            yield Fault(where, "its shards' rows do not add up", MERGE, column=column.name)


@dataclass
class _Column:
    """The check of one column of the dataset's manifest. Can be sent to another process."""

    dataset: Path
    name: str
    folder: Path
    base: Path
    """Folder of the base column's revision."""
    shards: int
    listed: dict[str, Any]
    """What the dataset's manifest says of the column."""
    manifest: dict[str, Any]
    entries: ShardEntries
    parents: dict[Revision, ShardEntries | None] = field(default_factory=dict)
    """Entries of the columns that it was made from, None where they cannot be read; shared by all columns."""

    @classmethod
    def open(cls, dataset: Path, name: str, columns: dict[str, Any]) -> _Column:
        revision, shards = columns[name]["revision"], int(columns[name]["shards"])
        folder = column_folder(dataset, name, revision)
        base = column_folder(dataset, BASE, columns[BASE]["revision"])
        manifest = read_column_manifest(dataset, name, revision)
        return cls(dataset, name, folder, base, shards, columns[name], manifest, ShardEntries(folder, manifest))

    def span(self, number: int) -> range:
        """The shards of a thousand."""
        return range(number * FOLDER_SHARDS, min((number + 1) * FOLDER_SHARDS, self.shards))

    # -- sizes and compacted receipts ---------------------------------------------------------------------------------

    def quick(self, number: int) -> Iterator[Fault]:
        """Sizes and compacted receipts of one thousand."""
        files = _sizes(thousand_folder(self.folder, number))
        yield from self.strangers_among(number, files)
        with suppress(UserError):  # said by _Sum
            thousand = self.entries.thousand(number)
            stamp = self.entries.path(number).stat().st_mtime_ns if thousand else 0
            for shard in self.span(number):
                yield from self._quick(shard, thousand, stamp, files)
            if thousand is not None:
                yield from self._parents_listed(thousand)

    def _quick(
        self, shard: int, thousand: Thousand | None, stamp: int, files: dict[str, tuple[int, int]]
    ) -> Iterator[Fault]:
        stem = f"{shard:08d}"
        found = [files.get(stem + suffix) for suffix in SUFFIXES]
        place = None if thousand is None else thousand.places.get(shard)
        tar, parquet, receipt = found
        if tar is None or parquet is None or receipt is None or thousand is None or place is None:
            yield from self._absent_or_unlisted(shard, found)
            return
        facts = thousand.facts
        if receipt[1] > stamp or receipt[0] != facts["receipt_bytes"][place]:
            yield from ShardCheck(ShardPath(self.folder, shard)).receipt(thousand.entry(place))[1]
        for suffix, (size, _), expected in (
            (".tar", tar, facts["bytes"]),
            (".parquet", parquet, facts["parquet_bytes"]),
        ):
            if size != expected[place]:
                yield self._wrong_size(shard, suffix, size, expected[place])

    def _absent_or_unlisted(self, shard: int, found: Sequence[object]) -> Iterator[Fault]:
        check = ShardCheck(ShardPath(self.folder, shard))
        absent = [f"{shard:08d}{suffix}" for suffix, file in zip(SUFFIXES, found) if file is None]
        if absent:
            yield check.fault(f"missing: {', '.join(absent)}", "run the job that made it again")
        else:
            yield check.fault("not in the column's manifest", MERGE)

    def _wrong_size(self, shard: int, suffix: str, size: int, expected: int) -> Fault:
        return ShardCheck(ShardPath(self.folder, shard)).fault(
            f"{shard:08d}{suffix} has {size} bytes, its receipt says {expected}"
        )

    def _parents_listed(self, thousand: Thousand) -> Iterator[Fault]:
        """The parents' shards as their manifests list them."""
        for parent, named in thousand.facts["parents"].items():
            which = (parent, named["revision"])
            if which not in self.parents:
                self.parents[which] = None
                with suppress(UserError):
                    self.parents[which] = shard_entries(self.dataset, *which)
            entries, source = self.parents[which], None
            if entries is not None:
                with suppress(UserError):
                    source = entries.thousand(thousand.number)
            for shard, sha256 in zip(thousand.shards, named["sha256"]):
                place = None if source is None else source.places.get(shard)
                found = None if source is None or place is None else source.facts["sha256"][place]
                yield from self._parent(shard, parent, named["revision"], sha256, found)

    def _parent(self, shard: int, parent: str, revision: str, expected: str, found: str | None) -> Iterator[Fault]:
        if found == expected:
            return
        check = ShardCheck(ShardPath(self.folder, shard))
        source = ShardPath(column_folder(self.dataset, parent, revision), shard)
        if found is None:
            yield check.fault(f"made from {source}, which has no receipt", "make the parent's shard again first")
        else:
            yield check.fault(f"made from other bytes than {source} has now")

    # -- every byte ---------------------------------------------------------------------------------------------------

    def full(self, shards: range) -> tuple[list[Fault], list[Span]]:
        """Every byte of some shards, all of one thousand; and their first and last keys."""
        faults: list[Fault] = []
        spans: list[Span] = []
        try:
            thousand, known = self.entries.thousand(shards.start // FOLDER_SHARDS), True
        except UserError:
            thousand, known = None, False
        if shards.start % FOLDER_SHARDS == 0:
            number = shards.start // FOLDER_SHARDS
            faults += self.strangers_among(number, _names(thousand_folder(self.folder, number)))
        for shard in shards:
            check = ShardCheck(ShardPath(self.folder, shard))
            path = check.path
            found = [file if file.exists() else None for file in (path.tar, path.parquet, path.receipt)]
            if None in found:
                faults += self._absent_or_unlisted(shard, found)
                continue
            place = None if thousand is None else thousand.places.get(shard)
            receipt, differing = check.receipt(thousand.entry(place) if thousand and place is not None else None)
            faults += differing if known or receipt is None else []
            if receipt is None:
                continue
            faults += self._receipt(shard, receipt)
            faults += check.content(receipt, None if self.name == BASE else ShardPath(self.base, shard))
            if check.keys:
                spans.append(Span(shard, check.keys[0], max(check.keys)))
        return faults, spans

    def _receipt(self, shard: int, receipt: dict[str, Any]) -> Iterator[Fault]:
        """Sizes, and the parents as their own receipts say."""
        path = ShardPath(self.folder, shard)
        for suffix, file, expected in (
            (".tar", path.tar, receipt["bytes"]),
            (".parquet", path.parquet, receipt["parquet_bytes"]),
        ):
            if (size := file.stat().st_size) != expected:
                yield self._wrong_size(shard, suffix, size, expected)
        for parent, named in receipt["parents"].items():
            found = None
            with suppress(UserError):
                found = read_receipt(ShardPath(column_folder(self.dataset, parent, named["revision"]), shard))
            yield from self._parent(
                shard, parent, named["revision"], named["sha256"], None if found is None else found["sha256"]
            )

    # -- files that belong to nothing ---------------------------------------------------------------------------------

    def strangers(self) -> Iterator[Fault]:
        """Files beside and beyond the thousands."""
        named = {path.name for path in named_files(self.folder)} | {"manifest.json", "rejected.jsonl"}
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            if entry.is_dir() and entry.name.isdigit():
                if not len(self.span(int(entry.name))):
                    yield from self.strangers_among(int(entry.name), _names(Path(entry.path)))
            elif entry.name not in named:
                where = f"{self.name}/{self.folder.name}/{entry.name}"
                yield Fault(where, "temporary or unknown file, or receipts of another state", DEAD, "note", self.name)

    def strangers_among(self, number: int, names: Iterable[str]) -> Iterator[Fault]:
        """Files in a thousand that belong to no shard: temporary files, leases of nobody, shards beyond the last."""
        ours = {f"{shard:08d}{suffix}" for shard in self.span(number) for suffix in SUFFIXES}
        for name in sorted(set(names) - ours):
            known = KNOWN.fullmatch(name)
            where = f"{self.name}/{self.folder.name}/{number:05d}/{name}"
            if known is None:
                yield Fault(where, "temporary or unknown file", DEAD, "note", self.name)
            elif known[2] == "lease":
                what, remedy = "lease on a finished shard", "harmless: a task is at work, or died here"
                yield Fault(where, what, remedy, "note", self.name, int(known[1]))
            else:
                what = "a shard that the plan does not have"
                yield Fault(where, what, "remove it", "fault", self.name, int(known[1]))


def _sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Name → bytes and modification time (ns) of every file in a folder."""
    try:
        with os.scandir(folder) as entries:
            facts = ((entry.name, entry.stat()) for entry in entries)
            return {name: (found.st_size, found.st_mtime_ns) for name, found in facts}
    except FileNotFoundError:
        return {}


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []


def _contents(columns: list[_Column], shards: range, workers: int) -> Iterator[Fault]:
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
    columns: list[_Column], units: list[range], workers: int
) -> Iterator[tuple[list[Fault], dict[str, list[Span]]]]:
    if workers <= 1:
        yield from map(partial(_unit, columns), units)
        return
    # Not forked: pyarrow has threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield from pool.map(_unit, repeat(columns), units)


def _unit(columns: list[_Column], shards: range) -> tuple[list[Fault], dict[str, list[Span]]]:
    faults: list[Fault] = []
    spans = {}
    for column in columns:
        found, spans[column.name] = column.full(shards)
        faults += found
    return faults, spans


def _order(column: _Column, spans: list[Span], start: int) -> Iterator[Fault]:
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


def _borders(column: _Column) -> list[int]:
    """Numbers of the first shards of the parts of base's plan: rows that were added later begin anew."""
    try:
        parts = read_json(column.dataset / "plans" / column.base.name / "plan.json")["parts"]
        return list(accumulate((len(part["offsets"]) for part in parts), initial=0))
    except (FileNotFoundError, UserError, KeyError):
        return [0]  # said by _counts


def _before(column: _Column, start: int) -> list[Span]:
    """The span of the shard before `start`, when it can be read; its own faults are another part's."""
    with suppress(OSError, ValueError, pa.ArrowException):
        if start and (keys := keys_of(ShardPath(column.folder, start - 1))):
            return [Span(start - 1, keys[0], keys[-1])]
    return []
