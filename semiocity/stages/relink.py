"""Whether a shard of an older revision has just the rows that a new one is to have."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from semiocity.data.manifest import ShardPath, read_receipt
from semiocity.data.relink import link_shard
from semiocity.data.shard import Head, index_schema
from semiocity.errors import UserError
from semiocity.stages.base import Made, Tombstone


def relink(old: ShardPath, new: ShardPath, head: Head, rows: Sequence[tuple[str, Made | Tombstone]]) -> bool:
    """Publish `new` as links to the files of `old` when that holds just these rows. The caller holds the lease.

    Returns False, having done nothing, when it holds others or is not whole. The receipt is what writing the rows
    would have given.
    """
    try:
        if read_receipt(old) is None or not _same(old, head, rows):
            return False
    except (OSError, UserError, ValueError, KeyError):
        return False
    ours = {name: getattr(head, name) for name in ("revision", "parents", "stage", "model", "execution")}
    link_shard(old, new, {**ours, "rejected": []})
    return True


def _same(old: ShardPath, head: Head, rows: Sequence[tuple[str, Made | Tombstone]]) -> bool:
    """Whether `old` has just these rows, by its index: keys, tombstones, scalars, and the crc32 of every payload."""
    table = pq.read_table(old.parquet, memory_map=False)
    if table.schema != index_schema(head.fields, head.scalars):
        return False
    names = [name for name in table.column_names if not name.endswith((".offset", ".length"))]
    return table.select(names).to_pylist() == [_line(key, row, names, head) for key, row in rows]


def _line(key: str, row: Made | Tombstone, names: Sequence[str], head: Head) -> dict[str, Any]:
    """The row as the index has it."""
    line: dict[str, Any] = dict.fromkeys(names)
    line["key"] = key
    match row:
        case Tombstone(kind, reason):
            line["tombstone"], line["reason"] = kind, reason
        case Made(fields, scalars):
            line |= scalars
            for name, (ext, payload) in fields.items():
                line[f"{name}.ext"], line[f"{name}.crc32"] = ext, zlib.crc32(payload)
    return line
