"""Receipts compacted by the thousand, so that a column of 100,000 shards is a hundred files to read.

    columns/COLUMN/REVISION/receipts.00000.HASH.json     what readers need of the receipts in the folder 00000/
    columns/COLUMN/REVISION/rejected.00000.HASH.jsonl   source files that these shards rejected, if there are any

HASH is that of the content: a new state is another file, and the column's manifest names the files that belong
together. So a merge that is cut off leaves the old state readable, and two merges at once do not mix.

Whether a thousand has changed since is told from times. The modification time of a compacted file is set to that of
the folder when it was listed: equal times mean that no file was added, removed or renamed since. Login-node code:
standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from semiocity.data.layout import FOLDER_SHARDS, FORMAT, ShardPath, check_format, dataset_of, read_receipt
from semiocity.errors import UserError
from semiocity.files import canonical, read_json, replacing, write_atomic

SETTLED_S = 2.0
"""A folder that changed less than this before it was listed may change again without its time showing it."""

READERS = 16
"""Receipts opened at the same time: on a network file system most of the time is waiting."""

KEPT = 8
"""Thousands that a list of entries keeps in memory."""

PLAIN = ("rows", "bytes", "sha256", "parquet_bytes", "parquet_sha256", "keys_digest")
"""Values of a receipt that are kept as they are."""

SHARED = ("stage", "model", "fields", "scalars")
"""Values that all shards of a revision have in common."""

Entry = dict[str, Any]
"""What is kept of one receipt: PLAIN, and shard, splits, tombstones, parents, execution."""


@dataclass(frozen=True)
class Thousand:
    """The receipts of one folder, each value a list over the shards that are there."""

    facts: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.facts["thousand"])

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that are there, ascending."""
        found: list[int] = self.facts["shards"]
        return found

    def __len__(self) -> int:
        return len(self.shards)

    def entry(self, i: int) -> Entry:
        """What is kept of the receipt at place i, as the receipt spells it."""
        facts = self.facts
        return {
            "shard": facts["shards"][i],
            **{name: facts[name][i] for name in PLAIN},
            "splits": {name: counts[i] for name, counts in facts["splits"].items() if counts[i]},
            "tombstones": {kind: counts[i] for kind, counts in facts["tombstones"].items()},
            "parents": {
                name: {"revision": parent["revision"], "sha256": parent["sha256"][i]}
                for name, parent in facts["parents"].items()
            },
            "execution": facts["executions"][facts["execution"][i]],
        }

    @cached_property
    def places(self) -> dict[int, int]:
        """Shard → its place."""
        return {shard: i for i, shard in enumerate(self.shards)}

    def line(self) -> dict[str, Any]:
        """The thousand's line in the column's manifest: totals, and the sha256 of its file."""
        facts = self.facts
        return {
            "thousand": self.number,
            "sha256": hashlib.sha256(_bytes(facts)).hexdigest(),
            "shards": len(self),
            "rows": sum(facts["rows"]),
            "bytes": sum(facts["bytes"]),
            "parquet_bytes": sum(facts["parquet_bytes"]),
            "splits": {name: sum(counts) for name, counts in facts["splits"].items()},
            "tombstones": {kind: sum(counts) for kind, counts in facts["tombstones"].items()},
            "rejected": facts["rejected"],
            "rejected_sha256": facts["rejected_sha256"],
        }


def receipts_file(folder: Path, thousand: int, sha256: str) -> Path:
    """The compacted receipts of a thousand, in the folder of a column's revision."""
    return folder / f"receipts.{thousand:05d}.{sha256[:10]}.json"


def rejected_file(folder: Path, thousand: int, sha256: str | None) -> Path | None:
    """The rejected source files of a thousand, a line each; None when there are none."""
    return None if sha256 is None else folder / f"rejected.{thousand:05d}.{sha256[:10]}.jsonl"


# ---------------------------------------------------------------- writing


def compact(folder: Path, thousand: int, shards: Sequence[int], reread: bool = False) -> Thousand:
    """Compact the receipts of `shards`, all of which lie in one thousand of the column's revision in `folder`.

    Only receipts that are new since the last time are opened; all of them with `reread`. May be called by anybody at
    any time, for instance by array tasks before the merge: equal receipts give equal files.
    Raises UserError for a receipt that is missing, damaged, of another shard, or at odds with the others.
    """
    place = ShardPath(folder, shards[0]).parent
    changed_ns = place.stat().st_mtime_ns
    settled = time.time_ns() - changed_ns > SETTLED_S * 1e9
    old, stamp = (None, 0) if reread else latest(folder, thousand)
    if stamp > changed_ns:
        old, stamp = None, 0  # the clock went backwards: times tell nothing
    if old is not None and stamp == changed_ns and old.shards == list(shards):
        return old
    entries, rejected = _entries(folder, shards, old, stamp)
    facts = _columns(folder, thousand, entries)
    lines = "".join(canonical(item) + "\n" for item in rejected).encode()
    facts["rejected"] = dict(sorted(Counter(item["reason"] for item in rejected).items()))
    facts["rejected_sha256"] = hashlib.sha256(lines).hexdigest() if rejected else None
    made = Thousand(facts)
    if (details := rejected_file(folder, thousand, facts["rejected_sha256"])) is not None and not details.exists():
        write_atomic(details, lines)
    data = _bytes(facts)
    with replacing(receipts_file(folder, thousand, hashlib.sha256(data).hexdigest())) as file:
        file.write(data)
        file.flush()
        stamp = changed_ns if settled else 0
        os.utime(file.fileno(), ns=(stamp, stamp))
    return made


def latest(folder: Path, thousand: int) -> tuple[Thousand | None, int]:
    """The newest compacted receipts of a thousand that can be read, and the folder time they were made at (ns)."""
    found = [(path.stat().st_mtime_ns, path) for path in folder.glob(f"receipts.{thousand:05d}.*.json")]
    for stamp, path in sorted(found, reverse=True):
        if stamp:
            try:
                facts = read_json(path)
                check_format(facts, path)
            except (UserError, FileNotFoundError):
                continue
            return Thousand(facts), stamp
    return None, 0


def _entries(
    folder: Path, shards: Sequence[int], old: Thousand | None, stamp: int
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Entries of the shards in their order, from `old` where the receipt has not been touched since; and rejections."""
    known = {} if old is None or old.facts["rejected_sha256"] else _untouched(folder, old, stamp)
    new = [shard for shard in shards if shard not in known]
    rejected: list[dict[str, str]] = []

    def read(shard: int) -> tuple[dict[str, Any], int]:
        path = ShardPath(folder, shard)
        receipt = read_receipt(path)
        if receipt is None or _identity(receipt) != (folder.parent.name, folder.name, shard):
            raise UserError(f"{path.receipt}: not the receipt of {path}. Remove it and run the job again")
        return receipt, path.receipt.stat().st_size

    with ThreadPoolExecutor(READERS, thread_name_prefix="receipts") as pool:
        for shard, (receipt, size) in zip(new, pool.map(read, new)):
            try:
                known[shard] = entry_of(receipt) | {"receipt_bytes": size} | {name: receipt[name] for name in SHARED}
                rejected += receipt["rejected"]
            except (KeyError, TypeError) as error:
                where = ShardPath(folder, shard).receipt
                raise UserError(f"{where}: no receipt ({error} missing). Remove it and run the job again") from None
    return [known[shard] for shard in shards], rejected


def digest_line(shard: int, keys_digest: str, sha256: str) -> bytes:
    """What a shard adds to the digest of its column: its keys and its bytes."""
    return f"{shard} {keys_digest} {sha256}\n".encode()


def entry_of(receipt: dict[str, Any]) -> Entry:
    """What is kept of a receipt. Raises KeyError when something is missing."""
    return {name: receipt[name] for name in ("shard", *PLAIN, "splits", "tombstones", "parents", "execution")}


def receipt_of(thousand: Thousand, i: int) -> dict[str, Any]:
    """The receipt at place i, which rejected no source file."""
    facts = thousand.facts
    head = {"format": FORMAT, "column": facts["column"], "revision": facts["revision"], "rejected": []}
    return head | thousand.entry(i) | {name: facts[name] for name in SHARED}


def _identity(receipt: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(receipt.get(name) for name in ("column", "revision", "shard"))


def _untouched(folder: Path, old: Thousand, stamp: int) -> dict[int, Entry]:
    """Those entries of `old` whose receipt is no younger than `stamp` and has the same size."""
    kept = {}
    sizes = dict(zip(old.shards, old.facts["receipt_bytes"]))
    with os.scandir(ShardPath(folder, old.shards[0]).parent) as files:
        for file in files:
            stem, _, suffix = file.name.partition(".")
            if suffix != "json" or not stem.isdigit() or int(stem) not in sizes:
                continue
            shard, facts = int(stem), file.stat()
            if facts.st_mtime_ns <= stamp and facts.st_size == sizes[shard]:
                shared = {name: old.facts[name] for name in SHARED}
                kept[shard] = old.entry(old.places[shard]) | {"receipt_bytes": sizes[shard]} | shared
    return kept


def _columns(folder: Path, thousand: int, entries: list[Entry]) -> dict[str, Any]:
    """The entries turned: each value a list over the shards."""
    first = entries[0]
    for entry in entries:
        _check_alike(folder, first, entry)
    executions = {canonical(entry["execution"]): entry["execution"] for entry in entries}
    numbers = {name: i for i, name in enumerate(sorted(executions))}
    splits = sorted({name for entry in entries for name in entry["splits"]})
    return {
        "format": FORMAT,
        "column": folder.parent.name,
        "revision": folder.name,
        "thousand": thousand,
        "shards": [entry["shard"] for entry in entries],
        **{name: [entry[name] for entry in entries] for name in (*PLAIN, "receipt_bytes")},
        "splits": {name: [entry["splits"].get(name, 0) for entry in entries] for name in splits},
        "tombstones": {kind: [entry["tombstones"][kind] for entry in entries] for kind in sorted(first["tombstones"])},
        "parents": {
            name: {"revision": parent["revision"], "sha256": [entry["parents"][name]["sha256"] for entry in entries]}
            for name, parent in first["parents"].items()
        },
        "executions": [executions[name] for name in sorted(executions)],
        "execution": [numbers[canonical(entry["execution"])] for entry in entries],
        **{name: first[name] for name in SHARED},
    }


def _check_alike(folder: Path, first: Entry, entry: Entry) -> None:
    where = ShardPath(folder, entry["shard"]).receipt
    for name in SHARED:
        if entry[name] != first[name]:
            raise UserError(
                f"{where}: its {name} differs from that of the shards before it. "
                "Remove the receipts that are wrong and run the job again"
            )
    revisions = [{name: parent["revision"] for name, parent in item["parents"].items()} for item in (first, entry)]
    if revisions[0] != revisions[1]:
        raise UserError(f"{where}: made from other parents ({revisions[1]}) than the shards before it ({revisions[0]})")


def _bytes(facts: dict[str, Any]) -> bytes:
    return canonical(facts).encode() + b"\n"


# ---------------------------------------------------------------- reading


class ShardEntries(Sequence[Entry]):
    """What a column's manifest says of each shard, read a thousand at a time and only when asked for.

    Place i is shard i in every column that is complete. Memory does not grow with the column: the last few thousands
    are kept. An entry has shard, rows, bytes, sha256, parquet_bytes, parquet_sha256, keys_digest, splits, tombstones,
    parents and execution.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self._digest: str = manifest["digest"]
        self._lines: list[dict[str, Any]] = manifest["thousands"]
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + line["shards"])
        self._kept: OrderedDict[int, Thousand] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, i: int) -> Entry: ...

    @overload
    def __getitem__(self, i: slice) -> list[Entry]: ...

    def __getitem__(self, i: int | slice) -> Entry | list[Entry]:
        if isinstance(i, slice):
            return [self[place] for place in range(*i.indices(len(self)))]
        place = i + len(self) if i < 0 else i
        if not 0 <= place < len(self):
            raise IndexError(f"shard {i} of a column with {len(self)} shards")
        index = self._index(place)
        return self._thousand(index).entry(place - self._starts[index])

    def __iter__(self) -> Iterator[Entry]:
        for thousand in self.thousands():
            for i in range(len(thousand)):
                yield thousand.entry(i)

    def thousands(self, only: Callable[[dict[str, Any]], Any] = lambda line: True) -> Iterator[Thousand]:
        """The thousands in order; with `only`, those whose line in the manifest it is true of."""
        for index, line in enumerate(list(self._lines)):
            if only(line):
                yield self._thousand(index)

    def thousand(self, number: int) -> Thousand | None:
        """The receipts in folder `number`; None when the column has none there."""
        for index in range(min(number, len(self._lines) - 1), -1, -1):
            if self._lines[index]["thousand"] == number:
                return self._thousand(index)
        return None

    def path(self, number: int) -> Path:
        """The file of folder `number`'s receipts."""
        return next(self._file(i)[0] for i, line in enumerate(self._lines) if line["thousand"] == number)

    def _index(self, place: int) -> int:
        # Full thousands are the rule; a manifest of what is there so far may have gaps.
        index = min(place // FOLDER_SHARDS, len(self._lines) - 1)
        while self._starts[index + 1] <= place:
            index += 1
        return index

    def _thousand(self, index: int) -> Thousand:
        if index not in self._kept:
            self._kept[index] = self._read(index)
        self._kept.move_to_end(index)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[index]

    def _read(self, index: int) -> Thousand:
        path, repair = self._file(index)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self._look_again(path)
            path, repair = self._file(index)
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise UserError(f"{path}: no such file, though the column's manifest names it; {repair}") from None
        if hashlib.sha256(data).hexdigest() != self._lines[index]["sha256"]:
            raise UserError(f"{path}: damaged (sha256); {repair}")
        return Thousand(json.loads(data))

    def _file(self, index: int) -> tuple[Path, str]:
        line = self._lines[index]
        path = receipts_file(self.folder, line["thousand"], line["sha256"])
        return path, f"`semiocity repair {dataset_of(path)} --apply` makes it anew from the receipts"

    def _look_again(self, gone: Path) -> None:
        """Somebody has merged the column since its manifest was read: go on if that changed no sample."""
        manifest = read_json(self.folder / "manifest.json")
        if manifest["digest"] != self._digest:
            raise UserError(f"{gone}: gone: the column was merged anew meanwhile; open the dataset again")
        self._lines = manifest["thousands"]
