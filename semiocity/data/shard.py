"""The shard: one tar, one parquet index, one receipt. Writer and reader; the format is described in README.md."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.config import canonical, fsync_folder, write_json
from semiocity.data.checksum import crc32
from semiocity.data.keys import KEY
from semiocity.data.manifest import FORMAT, ShardPath, read_receipt
from semiocity.data.ustar import BLOCK, RECORD, HashedFile, ustar_header
from semiocity.errors import UserError

__all__ = ["FORMAT", "Head", "ShardError", "ShardPath", "ShardReader", "ShardWriter", "read_receipt"]

TOMBSTONE = "tombstone.json"
KINDS = ("permanent", "retry", "removed")
"""Of tombstones: bad input; may succeed another time; taken down for good."""

_ZEROS = bytes(BLOCK)

NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")

Scalar = Literal["int", "float", "str", "bool"]
_ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}

_PYTHON: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


class ShardError(UserError):
    """A shard is damaged; the message names the shard, the key where it is known, and what to do."""


@dataclass(frozen=True)
class Head:
    """What is known of a shard before its first row; all of it goes into the receipt."""

    column: str
    revision: str
    shard: int
    parents: dict[str, dict[str, str]]
    """Parent column → {"revision", "sha256" of the parent's shard}."""
    stage: dict[str, Any]
    """{"name", "version", "args"}"""
    model: str | None
    """Revision of the model's weights, if there is a model."""
    execution: dict[str, Any]
    """{"device", "dtype", "batch"}: with the same input these give the same bytes."""
    fields: dict[str, str]
    """Logical field → member extension; several that may occur are separated by `|`, as in `jpg|png`."""
    scalars: dict[str, Scalar] = field(default_factory=dict)
    """Scalar → type; they go into the parquet only. Names may have dots, as in share.road."""

    def __post_init__(self) -> None:
        index = index_schema(self.fields, {}).names
        for name in (*self.fields, *self.scalars):
            if not NAME.fullmatch(name) or (name in index) or (name in self.fields and "." in name):
                raise ValueError(f"column {self.column}: {name!r} cannot be the name of a field or scalar")


class ShardWriter:
    """Writes one shard. The caller holds the shard's lease.

    Nothing is visible before `publish`; leaving the `with` block otherwise, by an exception or not, discards all.
    Files that attempts which died left for this shard are removed at the start.

        with ShardWriter(path, head) as writer:
            writer.add(key, {"image": ("jpg", data)}, {"width": 640})
            receipt = writer.publish()
    """

    def __init__(self, path: ShardPath, head: Head) -> None:
        self.path = path
        self.head = head
        self._rows: list[dict[str, Any]] = []
        self._rejected: list[dict[str, str]] = []
        self._splits: Counter[str] = Counter()
        self._tombstones: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._last = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        attempt = uuid.uuid4().hex
        self._tar = path.parent / f".{path.stem}.tar.{attempt}.tmp"
        self._parquet = path.parent / f".{path.stem}.parquet.{attempt}.tmp"
        self._file = HashedFile(self._tar)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise
        finally:
            self._tar.unlink(missing_ok=True)
            self._parquet.unlink(missing_ok=True)

    def add(self, key: str, fields: Mapping[str, tuple[str, bytes]], scalars: Mapping[str, Any] | None = None) -> None:
        """Append a row: logical field → (extension, payload). Keys come in strictly ascending order.

        Raises ValueError for what the head does not announce: that is a fault of the stage, not of the row.
        """
        if not fields:
            raise ValueError(f"{self.path}: {key}: a row needs at least one field, or a tombstone")
        headers: dict[str, bytes] = {}
        # Everything is checked before anything is written: after an error the caller may give the key a tombstone.
        for name, (ext, payload) in fields.items():
            if name not in self.head.fields:
                raise ValueError(f"{self.path}: {key}: field {name} is not among {list(self.head.fields)}")
            if ext not in self.head.fields[name].split("|"):
                raise ValueError(f"{self.path}: {key}: field {name} has extension {ext}, not {self.head.fields[name]}")
            headers[name] = ustar_header(f"{key}.{ext}", len(payload))
        row = self._row(key, scalars)
        for name in self.head.fields:
            if name not in fields:
                continue
            ext, payload = fields[name]
            row[f"{name}.ext"] = ext
            row[f"{name}.offset"] = self._member(headers[name], payload)
            row[f"{name}.length"] = len(payload)
            row[f"{name}.crc32"] = crc32(payload)
        self._append(row)

    def tombstone(self, key: str, kind: str, reason: str, scalars: Mapping[str, Any] | None = None) -> None:
        """Append a row that is not there, of a kind of KINDS."""
        if kind not in KINDS:
            raise ValueError(f"{self.path}: {key}: tombstone of kind {kind!r}, not one of {KINDS}")
        row = self._row(key, scalars)
        row["tombstone"], row["reason"] = kind, reason
        payload = tombstone_payload(kind, reason)
        self._member(ustar_header(f"{key}.{TOMBSTONE}", len(payload)), payload)
        self._tombstones[kind] += 1
        self._append(row)

    def reject(self, id: str, reason: str, detail: str) -> None:
        """Note a source file that is not packed; it appears in the receipt only."""
        self._rejected.append({"id": id, "reason": reason, "detail": detail})

    def publish(self) -> dict[str, Any]:
        """Make the shard visible, receipt last, and return the receipt. Call once, as the last thing."""
        self._file.add(bytes(2 * BLOCK))
        self._file.add(bytes(-self._file.size % RECORD))
        finished = self._file.finish()
        parquet_bytes, parquet_sha256 = self._write_parquet()
        sha256 = finished.result()
        receipt = {
            "format": FORMAT,
            "column": self.head.column,
            "revision": self.head.revision,
            "shard": self.head.shard,
            "rows": len(self._rows),
            "bytes": self._file.size,
            "sha256": sha256,
            "parquet_bytes": parquet_bytes,
            "parquet_sha256": parquet_sha256,
            "keys_digest": keys_digest(row["key"] for row in self._rows),
            "splits": dict(sorted(self._splits.items())),
            "parents": self.head.parents,
            "stage": self.head.stage,
            "model": self.head.model,
            "execution": self.head.execution,
            "fields": self.head.fields,
            "scalars": self.head.scalars,
            "tombstones": dict(self._tombstones),
            "rejected": self._rejected,
        }
        # An old receipt must not vouch for new bytes, not even for a moment.
        if self.path.receipt.exists():
            self.path.receipt.unlink()
            fsync_folder(self.path.parent)
        self._tar.rename(self.path.tar)
        self._parquet.rename(self.path.parquet)
        fsync_folder(self.path.parent)
        write_json(self.path.receipt, receipt)
        return receipt

    def _row(self, key: str, scalars: Mapping[str, Any] | None) -> dict[str, Any]:
        if not KEY.fullmatch(key):
            raise ValueError(f"{self.path}: {key!r} is no key")
        if key <= self._last:
            raise ValueError(f"{self.path}: key {key} after {self._last}: keys must ascend")
        given = dict(scalars or {})
        unknown = set(given) - set(self.head.scalars)
        if unknown:
            raise ValueError(f"{self.path}: {key}: scalars {sorted(unknown)} are not among {list(self.head.scalars)}")
        for name, value in given.items():
            if value is not None and not isinstance(value, _PYTHON[self.head.scalars[name]]):
                raise ValueError(f"{self.path}: {key}: scalar {name} is {value!r}, not {self.head.scalars[name]}")
        return {"key": key, **given}

    def _append(self, row: dict[str, Any]) -> None:
        self._last = row["key"]
        if row.get("split") is not None:
            self._splits[row["split"]] += 1
        self._rows.append(row)

    def _member(self, header: bytes, payload: bytes) -> int:
        """Write one tar member; returns the offset of its payload."""
        start = self._file.size + BLOCK
        self._file.add(header, payload, _ZEROS[: -len(payload) % BLOCK])
        return start

    def _write_parquet(self) -> tuple[int, str]:
        """Bytes and sha256."""
        data = index_bytes(self._rows, self.head.fields, self.head.scalars)
        with self._parquet.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return len(data), hashlib.sha256(data).hexdigest()


def index_bytes(rows: list[dict[str, Any]], fields: Mapping[str, str], scalars: Mapping[str, Scalar]) -> bytes:
    """The parquet of a shard with these rows."""
    table = pa.Table.from_pylist(rows, schema=index_schema(fields, scalars))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def tombstone_payload(kind: str, reason: str) -> bytes:
    """What the tar holds for a row that failed."""
    return canonical({"kind": kind, "reason": reason}).encode()


def keys_digest(keys: Iterable[str]) -> str:
    """sha256 over a shard's keys in their order, a line each."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()


def index_schema(fields: Mapping[str, str], scalars: Mapping[str, Scalar]) -> pa.Schema:
    """Columns of a shard's parquet. `offset` is where the payload (not its header) begins in the tar."""
    columns = [pa.field("key", pa.string(), nullable=False), ("tombstone", pa.string()), ("reason", pa.string())]
    for name in fields:
        columns += [
            (f"{name}.ext", pa.string()),
            (f"{name}.offset", pa.int64()),
            (f"{name}.length", pa.int64()),
            (f"{name}.crc32", pa.uint32()),
        ]
    columns += [(name, _ARROW[kind]) for name, kind in scalars.items()]
    return pa.schema(columns)


def remove_leftovers(path: ShardPath) -> None:
    """Remove temporary files of this shard that attempts which died left behind. The caller holds the lease."""
    with os.scandir(path.parent) as entries:
        names = [e.name for e in entries if _leftover(e.name, path.stem)]
    for name in names:
        (path.parent / name).unlink(missing_ok=True)


class ShardReader:
    """Reads rows of one shard through its index. Opening reads the parquet; the tar is opened at the first `read`.

    `tar` and `parquet` are copies on the node's own disk (see `staging`), read instead if they can be opened. Raises
    ShardError, naming shard and key, when files are missing or damaged. Safe to use after a fork: reading does not move
    a shared file position.
    """

    def __init__(self, path: ShardPath, tar: Path | None = None, parquet: Path | None = None) -> None:
        self.path = path
        self._descriptor = -1
        if tar is not None:
            with suppress(OSError):
                self._descriptor = os.open(tar, os.O_RDONLY)  # now: it may be evicted at any time
        try:
            self.table = _read_index(path.parquet, parquet)
            self._columns: dict[str, list[Any]] = {
                name: self.table.column(name).to_pylist() for name in ("key", "tombstone", "reason")
            }
            names = self.table.column_names
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # ValueError: a name that is no UTF-8
            raise ShardError(f"{path.parquet}: index cannot be read ({error}). {_remedy(path)}") from None
        self.keys: list[str] = self._columns["key"]
        fields = {name.removesuffix(".offset"): "" for name in names if name.endswith(".offset")}
        known = set(index_schema(fields, {}).names)
        self._scalars = [name for name in names if name not in known]
        self._places: dict[str, tuple[list[Any], list[Any], list[Any]]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def tombstoned(self, i: int) -> tuple[str, str] | None:
        """(kind, reason) when row i failed, else None."""
        kind = self._columns["tombstone"][i]
        return None if kind is None else (kind, self._columns["reason"][i])

    def has(self, field: str) -> bool:
        """Whether this shard's rows may have the field."""
        return f"{field}.offset" in self.table.column_names

    def read(self, i: int, field: str, check: bool = True) -> bytes | None:
        """The payload of a field of row i, or None when the row has none. `check` compares its crc32."""
        if (places := self._places.get(field)) is None:
            if not self.has(field):
                raise ShardError(f"{self.path}: no field {field}")
            places = (
                self.column(f"{field}.offset"),
                self.column(f"{field}.length"),
                self.column(f"{field}.crc32"),
            )
            self._places[field] = places
        offset = places[0][i]
        if offset is None:
            return None
        if self._descriptor < 0:
            self._open()
        data = os.pread(self._descriptor, places[1][i], offset)
        if len(data) != places[1][i]:
            raise ShardError(f"{self.path.tar}: ends inside {field} of {self.keys[i]}. {_remedy(self.path)}")
        if check and crc32(data) != places[2][i]:
            raise ShardError(f"{self.path.tar}: {field} of {self.keys[i]} is damaged (crc32). {_remedy(self.path)}")
        return data

    def payloads(self, i: int) -> dict[str, tuple[str, bytes]]:
        """Field → (extension, payload) of row i, for those that it has."""
        found = {}
        for name in (name.removesuffix(".ext") for name in self.table.column_names if name.endswith(".ext")):
            payload = self.read(i, name)
            if payload is not None:
                found[name] = (self.column(f"{name}.ext")[i], payload)
        return found

    def scalars(self, i: int) -> dict[str, Any]:
        """The scalars of row i by name; None where the row has none."""
        return {name: self.column(name)[i] for name in self._scalars}

    def scalar(self, i: int, name: str) -> Any:
        """One scalar of row i. Raises ShardError when the shard has no such scalar."""
        return self.column(name)[i]

    def column(self, name: str) -> list[Any]:
        """A whole column of the index, such as split. Raises ShardError when there is none."""
        if name not in self._columns:
            if name not in self.table.column_names:
                raise ShardError(f"{self.path}: no scalar {name}")
            self._columns[name] = self.table.column(name).to_pylist()
        return self._columns[name]

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self.path.tar, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{self.path.tar}: {error.strerror}. {_remedy(self.path)}") from None


def _read_index(shared: Path, copy: Path | None) -> pa.Table:
    # One thread: this may be a forked worker, and an index is small.
    if copy is not None:
        with suppress(OSError, pa.ArrowException):
            return _read_table(copy)
    return _read_table(shared)


def _read_table(path: Path) -> pa.Table:
    # Not pq.read_table, which makes a dataset of it first: twice the time for a small file.
    with pq.ParquetFile(path, memory_map=False) as file:
        return file.read(use_threads=False)


def _remedy(path: ShardPath) -> str:
    return f"Remove {path.receipt.name} beside it and run the job that made it again: only this shard is made anew"


def sha256_file(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leftover(name: str, stem: str) -> bool:
    return name.endswith(".tmp") and any(name.startswith(f".{stem}.{kind}.") for kind in ("tar", "parquet", "json"))
