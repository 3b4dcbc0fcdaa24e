"""One shard read again from the first byte to the last: tar headers are parsed here, not through the index."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.data.keys import KEY
from semiocity.data.layout import ShardPath
from semiocity.data.receipts import Entry, entry_of
from semiocity.data.shard import TOMBSTONE, index_schema, keys_digest, read_receipt, sha256_file, tombstone_payload
from semiocity.data.ustar import BLOCK, ustar_header
from semiocity.errors import UserError

AGAIN = "remove {receipt} and run the job that made it again: only this shard is made anew"
MERGE = "run the job that made the column again: it merges the receipts anew"


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


class ShardCheck:
    """The check of one shard whose three files are there."""

    def __init__(self, path: ShardPath) -> None:
        self.path = path
        self.keys: list[str] = []
        """The shard's keys, once its index could be read."""

    def receipt(self, listed: Entry | None) -> tuple[dict[str, Any] | None, list[Fault]]:
        """The receipt, when it can be read, and how it differs from what the column's manifest lists."""
        try:
            receipt = read_receipt(self.path)
            found = entry_of(receipt or {})
        except UserError as error:
            return None, [self.fault(str(error))]
        except KeyError as error:
            return None, [self.fault(f"no receipt: {error} is missing in it")]
        if listed is None:
            return receipt, [self.fault("not in the column's manifest", MERGE)]
        differing = [name for name in found if found[name] != listed[name]]
        if differing:
            return receipt, [self.fault(f"receipt and manifest differ in {', '.join(differing)}", MERGE)]
        return receipt, []

    def content(self, receipt: dict[str, Any], base: ShardPath | None) -> Iterator[Fault]:
        """Index and tar against the receipt, keys against those of `base`, the base column's shard."""
        path, damaged = self.path, False
        if sha256_file(path.parquet) != receipt["parquet_sha256"]:
            yield self.fault(f"{path.parquet.name} is damaged: sha256 is not the receipt's")
            damaged = True
        try:
            table = pq.read_table(path.parquet)
            announced = index_schema(receipt["fields"], receipt["scalars"])
            if {(c.name, c.type) for c in table.schema} != {(c.name, c.type) for c in announced}:
                yield self.fault(f"{path.parquet.name}: its columns are not those that the receipt announces")
                return
            rows = table.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a name that is no UTF-8 any more
            yield self.fault(f"{path.parquet.name} cannot be read ({error})")
            return
        if damaged:  # its values may be anything, also what no tar can hold: they say nothing of keys and members
            if sha256_file(path.tar) != receipt["sha256"]:
                yield self.fault(f"{path.tar.name} is damaged: sha256 is not the receipt's")
            return
        self.keys = [row["key"] for row in rows]
        yield from self._keys(receipt)
        if base is not None:
            yield from self._against(base)
        yield from self._tar(receipt, rows)

    def fault(self, what: str, remedy: str | None = None, key: str | None = None) -> Fault:
        where = f"{self.path} {key}" if key else str(self.path)
        remedy = remedy or AGAIN.format(receipt=self.path.receipt)
        return Fault(where, what, remedy, "fault", self.path.folder.parent.name, self.path.shard, key)

    def _keys(self, receipt: dict[str, Any]) -> Iterator[Fault]:
        last = ""
        for key in self.keys:
            if not KEY.fullmatch(key):
                yield self.fault("no key", key=key)
            elif key <= last:
                yield self.fault(f"the same key as before, or key out of order after {last}", key=key)
            last = max(key, last)
        if len(self.keys) != receipt["rows"]:
            yield self.fault(f"{len(self.keys)} rows, the receipt says {receipt['rows']}")
        if keys_digest(self.keys) != receipt["keys_digest"]:
            yield self.fault("keys_digest of the receipt is not that of the keys")

    def _against(self, base: ShardPath) -> Iterator[Fault]:
        try:
            expected = set(keys_of(base))
        except (OSError, ValueError, pa.ArrowException):
            return  # reported with the base column
        for key in sorted(expected - set(self.keys)):
            yield self.fault("key of base that this column lacks", key=key)
        for key in sorted(set(self.keys) - expected):
            yield self.fault("key that base does not have", key=key)

    def _tar(self, receipt: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Fault]:
        """Walk the tar beside the index: each member's header and payload must be the one expected next."""
        with _Hashing(self.path.tar) as file:
            yield from self._members(file, rows)
            file.take_rest()
            if file.digest.hexdigest() != receipt["sha256"]:
                yield self.fault(f"{self.path.tar.name} is damaged: sha256 is not the receipt's")

    def _members(self, file: _Hashing, rows: list[dict[str, Any]]) -> Iterator[Fault]:
        tar = self.path.tar.name
        for key, name, size, offset, crc in _expected(rows):
            start = file.position
            header = file.take(BLOCK)
            if header != ustar_header(name, size):
                # What follows cannot be told apart any more.
                what = "is cut off" if len(header) < BLOCK else "has a damaged or unexpected header"
                yield self.fault(f"{tar}: member {name} {what} at byte {start}", key=key)
                return
            start = file.position
            payload = file.take(size)
            padding = file.take(-size % BLOCK)
            if len(payload) < size:
                yield self.fault(f"{tar}: ends inside member {name}", key=key)
                return
            if (start, zlib.crc32(payload)) != (offset if offset is not None else start, crc):
                yield self.fault(f"{tar}: member {name} is damaged (crc32 or offset)", key=key)
            if padding.strip(b"\0"):
                yield self.fault(f"{tar}: bytes that are not zero after member {name}", key=key)
        if not file.only_zeros_follow():
            yield self.fault(f"{tar}: no clean end after the last member")


def keys_of(path: ShardPath) -> list[str]:
    """The keys of a shard, from its index."""
    found: list[str] = pq.read_table(path.parquet, columns=["key"]).column("key").to_pylist()
    return found


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
