"""A shard's index made again from its tar, where that gives the very bytes that the receipt names."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.data.filter import LONGEST_TEXT
from semiocity.data.layout import BASE, ShardPath
from semiocity.data.shard import TOMBSTONE, index_bytes, sha256_file
from semiocity.data.ustar import BLOCK


def reindex(path: ShardPath, receipt: dict[str, Any]) -> bytes | None:
    """The bytes of the shard's parquet, or None when they cannot be had back exactly.

    The tar must be the one that the receipt names. Scalars are in base's `meta`, or are the beginning of its caption;
    those that a stage made are in the parquet alone, so that its index can be made again only where it has none.
    Another version of pyarrow may write other bytes: they are not taken either.
    """
    if not path.tar.exists() or sha256_file(path.tar) != receipt["sha256"]:
        return None
    if receipt["scalars"] and receipt["column"] != BASE:
        return None
    rows: list[dict[str, Any]] = []
    for key, ext, offset, payload in _members(path.tar):
        if not rows or rows[-1]["key"] != key:
            rows.append({"key": key})
        row = rows[-1]
        if ext == TOMBSTONE:
            dead = json.loads(payload)
            row |= {"tombstone": dead["kind"], "reason": dead["reason"]}
            continue
        field = next(name for name, exts in receipt["fields"].items() if ext in exts.split("|"))
        row |= {
            f"{field}.ext": ext,
            f"{field}.offset": offset,
            f"{field}.length": len(payload),
            f"{field}.crc32": zlib.crc32(payload),
        }
        if receipt["column"] == BASE and field == "caption" and receipt["scalars"].get("caption") == "str":
            row["caption"] = payload.decode()[:LONGEST_TEXT]
        if receipt["column"] == BASE and field == "meta":
            meta = json.loads(payload)
            row |= {name: meta.get(name, row.get(name)) for name in receipt["scalars"]}
    fields, scalars = _in_order(path, receipt["fields"], ".ext"), _in_order(path, receipt["scalars"])
    data = index_bytes(rows, fields, scalars)
    return data if hashlib.sha256(data).hexdigest() == receipt["parquet_sha256"] else None


def _in_order(path: ShardPath, names: dict[str, Any], suffix: str = "") -> dict[str, Any]:
    """Fields (`suffix` .ext) or scalars in the order that the index has them in, which receipts do not keep: any
    shard's tells."""
    siblings = sorted(path.parent.glob("[0-9]*.parquet"), key=lambda file: abs(int(file.stem) - path.shard))
    for file in siblings[:20]:
        with suppress(OSError, ValueError, pa.ArrowException):
            places = {name: i for i, name in enumerate(pq.read_schema(file).names)}
            if all(name + suffix in places for name in names):
                return {name: names[name] for name in sorted(names, key=lambda name: places[name + suffix])}
    return names


def _members(tar: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """Key, extension, offset of the payload, and payload of each member of a tar that ShardWriter wrote."""
    with tar.open("rb") as file:
        while (header := file.read(BLOCK)) and header.strip(b"\0"):
            key, _, ext = header[:100].rstrip(b"\0").decode("ascii").partition(".")
            size, offset = int(header[124:135], 8), file.tell()
            yield key, ext, offset, file.read(size)
            file.seek(-size % BLOCK, 1)
