"""Whether a shard that is there already holds the rows that are to be written."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semiocity.data.manifest import ShardPath, complete
from semiocity.data.shard import Head, index_schema
from semiocity.stages.base import Made, Tombstone


def same_rows(shard: ShardPath, head: Head, rows: Sequence[tuple[str, Made | Tombstone]]) -> bool:
    """By its index: keys, tombstones, scalars, and the crc32 of every payload. False when it is not whole."""
    if not complete(shard):
        return False
    try:
        table = pq.read_table(shard.parquet, memory_map=False)
    except (OSError, ValueError, pa.ArrowException):
        return False
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
