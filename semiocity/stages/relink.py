"""A shard of a new revision whose rows are those of an older one: its files are linked, not written again."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from semiocity.data.manifest import ShardPath, read_receipt
from semiocity.data.shard import Head, index_schema, remove_leftovers
from semiocity.errors import UserError
from semiocity.files import fsync_folder, write_json
from semiocity.stages.base import Made, Tombstone


def relink(old: ShardPath, new: ShardPath, head: Head, rows: Sequence[tuple[str, Made | Tombstone]]) -> bool:
    """Publish `new` as hard links to the files of `old` when that holds just these rows. The caller holds the lease.

    Returns False, having done nothing, when it holds others, is not whole, or the file system knows no links. The
    receipt is what writing the rows would have given.
    """
    try:
        receipt = read_receipt(old)
        if receipt is None or not _same(old, head, rows):
            return False
    except (OSError, UserError, ValueError, KeyError):
        return False
    remove_leftovers(new)
    attempt = uuid.uuid4().hex
    pairs = [(old.tar, new.tar), (old.parquet, new.parquet)]
    made = [new.parent / f".{new.stem}{target.suffix}.{attempt}.tmp" for _, target in pairs]
    try:
        for (source, _), temporary in zip(pairs, made, strict=True):
            os.link(source, temporary)
        if new.receipt.exists():
            new.receipt.unlink()
            fsync_folder(new.parent)
        for (_, target), temporary in zip(pairs, made, strict=True):
            temporary.replace(target)
    except OSError:
        return False
    finally:
        for temporary in made:
            temporary.unlink(missing_ok=True)
    fsync_folder(new.parent)
    ours = {name: getattr(head, name) for name in ("revision", "parents", "stage", "model", "execution")}
    write_json(new.receipt, {**receipt, **ours, "rejected": []})
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
