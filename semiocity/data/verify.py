"""Reading a dataset again from the first byte to the last, and naming every fault.

Nothing is trusted twice: tar headers are parsed here (not through the index), payloads are compared with the index and
the receipt, receipts with the manifests, columns with the base column, counts with the plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.config import read_json
from semiocity.data.keys import KEY
from semiocity.data.manifest import (
    BASE,
    FOLDER_SHARDS,
    SUFFIXES,
    ShardPath,
    column_folder,
    read_column_manifest,
    read_manifest,
    read_receipt,
)
from semiocity.data.receipts import ShardEntries
from semiocity.data.shard import (
    BLOCK,
    TOMBSTONE,
    index_schema,
    keys_digest,
    sha256_file,
    tombstone_payload,
    ustar_header,
)
from semiocity.data.takedown import remains
from semiocity.errors import UserError

AGAIN = "remove {receipt} and run the job that made it again: only this shard is made anew"
MERGE = "run the job that made the column again: it merges the receipts anew"
KNOWN = re.compile(r"(\d{8})\.(tar|parquet|json|lease)")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or, as a note, untidy without harm."""

    where: str
    """COLUMN/REVISION/SHARD, with the key where one is known."""
    what: str
    remedy: str
    level: Literal["fault", "note"] = "fault"
    column: str | None = None
    shard: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


def verify(dataset: Path, quick: bool = False) -> list[Fault]:
    """Every fault of a dataset; an empty list when all is well. `quick` compares sizes and receipts, reads no payload.

    Raises UserError when there is no dataset to verify.
    """
    dataset = Path(dataset)
    manifest = read_manifest(dataset)
    faults = list(_counts(dataset, manifest))
    faults += [Fault(str(where), what, f"run `semiocity remove {dataset} --apply`") for where, what in remains(dataset)]
    for name in sorted(manifest["columns"], key=lambda name: (name != BASE, name)):
        faults += _Column(dataset, name, manifest["columns"], quick).check()
    return faults


def show(dataset: Path, quick: bool, as_json: bool) -> int:
    """Verify and print; the exit status is 0 only when there is no fault. Notes are printed and do no harm."""
    found = verify(dataset, quick)
    faults = [item for item in found if item.level == "fault"]
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=1, sort_keys=True))
        return 1 if faults else 0
    for item in found:
        print(item if item.level == "fault" else f"note: {item}")
    columns = read_manifest(dataset)["columns"]
    shards = sum(column["shards"] for column in columns.values())
    what = "receipts and sizes of" if quick else "every byte of"
    verdict = f"{len(faults)} faults" if faults else "all is well"
    print(f"{dataset}: {what} {shards} shards in {len(columns)} columns read again: {verdict}")
    return 1 if faults else 0


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


class _Column:
    """The check of one column of the dataset's manifest."""

    def __init__(self, dataset: Path, name: str, columns: dict[str, Any], quick: bool) -> None:
        self.dataset = dataset
        self.name = name
        self.entry = columns[name]
        self.shards = int(columns[BASE]["shards"])
        self.base = column_folder(dataset, BASE, columns[BASE]["revision"])
        self.quick = quick
        self.folder = column_folder(dataset, name, self.entry["revision"])
        self.last_key = ""
        self.last_shard = -1

    def check(self) -> list[Fault]:
        where = str(self.folder / "manifest.json")
        try:
            manifest = read_column_manifest(self.dataset, self.name, self.entry["revision"])
            listed = {item["shard"]: item for item in ShardEntries(self.folder, manifest)}
            digest = shards_digest(listed.values())
        except (UserError, KeyError, TypeError) as error:
            return [Fault(where, f"cannot be read ({error})", MERGE, column=self.name)]
        faults: list[Fault] = []
        if digest != manifest["digest"] or digest != self.entry["digest"]:
            faults.append(Fault(where, "its digest is not that of its shards", MERGE, column=self.name))
        if sum(item["rows"] for item in listed.values()) != self.entry["rows"]:
            faults.append(Fault(where, "its shards' rows do not add up", MERGE, column=self.name))
        for shard in range(self.shards):
            faults += self._shard(ShardPath(self.folder, shard), listed.get(shard))
        return faults + list(self._strangers())

    def _shard(self, path: ShardPath, listed: dict[str, Any] | None) -> Iterator[Fault]:
        files = {".tar": path.tar, ".parquet": path.parquet, ".json": path.receipt}
        absent = [files[suffix].name for suffix in SUFFIXES if not files[suffix].exists()]
        if absent:
            yield self._fault(path, f"missing: {', '.join(absent)}", "run the job that made it again")
            return
        try:
            receipt = read_receipt(path)
        except UserError as error:
            yield self._fault(path, str(error))
            return
        assert receipt is not None
        if listed is None:
            yield self._fault(path, "not in the column's manifest", MERGE)
        else:
            differing = [name for name in listed if receipt.get(name) != listed[name]]
            if differing:
                yield self._fault(path, f"receipt and manifest differ in {', '.join(differing)}", MERGE)
        yield from self._parents(path, receipt)
        size = path.tar.stat().st_size
        if size != receipt["bytes"]:
            yield self._fault(path, f"{path.tar.name} has {size} bytes, its receipt says {receipt['bytes']}")
        if not self.quick:
            yield from self._content(path, receipt)

    def _parents(self, path: ShardPath, receipt: dict[str, Any]) -> Iterator[Fault]:
        for parent, named in receipt["parents"].items():
            source = ShardPath(column_folder(self.dataset, parent, named["revision"]), path.shard)
            found = None
            with suppress(UserError):
                found = read_receipt(source)
            if found is None:
                yield self._fault(
                    path, f"made from {source}, which has no receipt", "make the parent's shard again first"
                )
            elif found["sha256"] != named["sha256"]:
                yield self._fault(path, f"made from other bytes than {source} has now")

    def _content(self, path: ShardPath, receipt: dict[str, Any]) -> Iterator[Fault]:
        if sha256_file(path.parquet) != receipt["parquet_sha256"]:
            yield self._fault(path, f"{path.parquet.name} is damaged: sha256 is not the receipt's")
        try:
            table = pq.read_table(path.parquet)
            announced = index_schema(receipt["fields"], receipt["scalars"])
            if {(c.name, c.type) for c in table.schema} != {(c.name, c.type) for c in announced}:
                yield self._fault(path, f"{path.parquet.name}: its columns are not those that the receipt announces")
                return
            rows = table.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a name that is no UTF-8 any more
            yield self._fault(path, f"{path.parquet.name} cannot be read ({error})")
            return
        yield from self._keys(path, receipt, [row["key"] for row in rows])
        yield from self._tar(path, receipt, rows)

    def _keys(self, path: ShardPath, receipt: dict[str, Any], keys: list[str]) -> Iterator[Fault]:
        """Keys ascend through the whole column, so that none can occur twice; and they are those of base."""
        for key in keys:
            if key == self.last_key:
                yield self._fault(path, f"the same key as in shard {self.last_shard:08d}", key=key)
            elif key < self.last_key:
                yield self._fault(
                    path, f"key out of order after {self.last_key} in shard {self.last_shard:08d}", key=key
                )
            elif not KEY.fullmatch(key):
                yield self._fault(path, "no key", key=key)
            self.last_key, self.last_shard = max(key, self.last_key), path.shard
        if len(keys) != receipt["rows"]:
            yield self._fault(path, f"{len(keys)} rows, the receipt says {receipt['rows']}")
        if keys_digest(keys) != receipt["keys_digest"]:
            yield self._fault(path, "keys_digest of the receipt is not that of the keys")
        if self.name != BASE:
            yield from self._against_base(path, keys)

    def _against_base(self, path: ShardPath, keys: list[str]) -> Iterator[Fault]:
        source = ShardPath(self.base, path.shard)
        try:
            base: list[str] = pq.read_table(source.parquet, columns=["key"]).column("key").to_pylist()
        except (OSError, ValueError, pa.ArrowException):
            return  # reported with the base column
        for key in sorted(set(base) - set(keys)):
            yield self._fault(path, "key of base that this column lacks", key=key)
        for key in sorted(set(keys) - set(base)):
            yield self._fault(path, "key that base does not have", key=key)

    def _tar(self, path: ShardPath, receipt: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Fault]:
        """Walk the tar beside the index: each member's header and payload must be the one expected next."""
        with _Hashing(path.tar) as file:
            yield from self._members(path, file, rows)
            file.take_rest()
            if file.digest.hexdigest() != receipt["sha256"]:
                yield self._fault(path, f"{path.tar.name} is damaged: sha256 is not the receipt's")

    def _members(self, path: ShardPath, file: _Hashing, rows: list[dict[str, Any]]) -> Iterator[Fault]:
        tar = path.tar.name
        for key, name, size, offset, crc in _expected(rows):
            start = file.position
            header = file.take(BLOCK)
            if header != ustar_header(name, size):
                # What follows cannot be told apart any more.
                what = "is cut off" if len(header) < BLOCK else "has a damaged or unexpected header"
                yield self._fault(path, f"{tar}: member {name} {what} at byte {start}", key=key)
                return
            start = file.position
            payload = file.take(size)
            padding = file.take(-size % BLOCK)
            if len(payload) < size:
                yield self._fault(path, f"{tar}: ends inside member {name}", key=key)
                return
            if (start, zlib.crc32(payload)) != (offset if offset is not None else start, crc):
                yield self._fault(path, f"{tar}: member {name} is damaged (crc32 or offset)", key=key)
            if padding.strip(b"\0"):
                yield self._fault(path, f"{tar}: bytes that are not zero after member {name}", key=key)
        if not file.only_zeros_follow():
            yield self._fault(path, f"{tar}: no clean end after the last member")

    def _strangers(self) -> Iterator[Fault]:
        """Files that belong to no shard: temporary files, leases of nobody, shards beyond the last."""
        for folder in sorted(self.folder.glob("[0-9]" * 5)):
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                where = f"{self.name}/{self.entry['revision']}/{folder.name}/{name}"
                known = KNOWN.fullmatch(name)
                if known is None:
                    remedy = "left by an attempt that died, or of one at work now; the next attempt removes it"
                    yield Fault(where, "temporary or unknown file", remedy, "note", self.name)
                elif known[2] == "lease":
                    remedy = "harmless: a task is at work, or died here"
                    yield Fault(where, "lease on a finished shard", remedy, "note", self.name, int(known[1]))
                elif int(known[1]) >= self.shards or int(known[1]) // FOLDER_SHARDS != int(folder.name):
                    yield Fault(
                        where, "a shard that the plan does not have", "remove it", "fault", self.name, int(known[1])
                    )

    def _fault(self, path: ShardPath, what: str, remedy: str | None = None, key: str | None = None) -> Fault:
        where = f"{path} {key}" if key else str(path)
        remedy = remedy or AGAIN.format(receipt=path.receipt)
        return Fault(where, what, remedy, "fault", self.name, path.shard, key)


def shards_digest(shards: Iterable[dict[str, Any]]) -> str:
    """One sha256 over the ordered keys and the bytes of a column's shards."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard['shard']} {shard['keys_digest']} {shard['sha256']}\n".encode())
    return digest.hexdigest()


class _Hashing:
    """A file read once from front to back, with the sha256 of what was read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.digest = hashlib.sha256()
        self.position = 0

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        self.digest.update(data)
        self.position += len(data)
        return data

    def take_rest(self) -> None:
        while self.take(1 << 20):
            pass

    def only_zeros_follow(self) -> bool:
        """Read to the end; whether at least the two closing blocks are there, and nothing else."""
        start, clean = self.position, True
        while chunk := self.take(1 << 20):
            clean = clean and not chunk.strip(b"\0")
        return clean and self.position - start >= 2 * BLOCK


def _expected(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, int, int | None, int]]:
    """(key, member, size, offset, crc32) of every member in order. A tombstone's payload follows from the index."""
    fields = [name.removesuffix(".offset") for name in (rows[0] if rows else {}) if name.endswith(".offset")]
    for row in rows:
        key = row["key"]
        if row["tombstone"] is not None:
            payload = tombstone_payload(row["tombstone"], row["reason"])
            yield key, f"{key}.{TOMBSTONE}", len(payload), None, zlib.crc32(payload)
            continue
        for field in fields:
            ext, size, offset, crc = (row[f"{field}.{part}"] for part in ("ext", "length", "offset", "crc32"))
            if ext is not None:
                yield key, f"{key}.{ext}", size, offset, crc
