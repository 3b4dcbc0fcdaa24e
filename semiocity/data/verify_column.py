"""One column read again, the quick way or every byte: its shards, its compacted receipts, and what lies about."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.data.layout import (
    BASE,
    FOLDER_SHARDS,
    GATHERED,
    SUFFIXES,
    ShardPath,
    column_folder,
    read_receipt,
    thousand_folder,
)
from semiocity.data.manifest import named_files, read_column_manifest, shard_entries
from semiocity.data.receipts import ShardEntries, Thousand
from semiocity.data.verify_shard import MERGE, Fault, ShardCheck
from semiocity.errors import UserError

KNOWN = re.compile(r"(\d{8})\.(tar|parquet|json|lease)")
DEAD = "left by an attempt that died, or of one at work now; the next attempt removes it, or `semiocity gc`"

Revision = tuple[str, str]
"""Column and revision."""


class Span(NamedTuple):
    """First and last key of a shard."""

    shard: int
    first: str
    last: str


@dataclass
class ColumnCheck:
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
    def open(cls, dataset: Path, name: str, columns: dict[str, Any]) -> ColumnCheck:
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
        shards = range(shards.start, min(shards.stop, self.shards))  # it may lack those of rows that were added
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
            elif entry.name not in named and entry.name != GATHERED:
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
