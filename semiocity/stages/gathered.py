"""The journal of a reduce stage: what it read of the shards' indexes, kept until its column is written.

    columns/COLUMN/REVISION/.gathered/00000000-00100.HASH.arrow    shards 0 to 99, a record batch each

Reading the indexes of 100,000 shards is most of what a reduce waits for; a task that was stopped goes on behind the
last file. The revision names the bytes of all parents, so what was read stays right. HASH is the content's: a damaged
file is read anew from the indexes. The files are as large as what was read of the indexes, packed, and go when the last
shard is there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from semiocity.data.layout import GATHERED
from semiocity.files import write_atomic

GROUP_SHARDS = 100
"""Shards in a file: what a task that is killed without a word reads again."""

_NAME = re.compile(r"(\d{8})-(\d{5})\.([0-9a-f]{16})\.arrow")


class Journal:
    """What was read of the first shards of a dataset, a table each. One task writes it."""

    def __init__(self, revision: Path) -> None:
        self.folder = revision / GATHERED
        self._waiting: list[pa.Table] = []
        self._first = 0
        """The first shard that is in no file."""

    def read(self) -> Iterator[pa.Table]:
        """The tables of shards 0, 1, …, as far as they are whole. To be read to the end before anything is added."""
        for path in sorted(self.folder.glob("*.arrow")):
            found = _NAME.fullmatch(path.name)
            if found is None or int(found[1]) != self._first:
                continue
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest()[:16] != found[3]:
                continue
            with pa.ipc.open_file(pa.BufferReader(data)) as file:
                for number in range(file.num_record_batches):
                    yield pa.Table.from_batches([file.get_batch(number)])
            self._first += int(found[2])

    def add(self, table: pa.Table) -> None:
        """The next shard's table. Those of a group are written together."""
        self._waiting.append(table)
        if len(self._waiting) == GROUP_SHARDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        data, count = _packed(self._waiting), len(self._waiting)
        name = f"{self._first:08d}-{count:05d}.{hashlib.sha256(data).hexdigest()[:16]}.arrow"
        write_atomic(self.folder / name, data)
        self._first += count
        self._waiting = []

    def remove(self) -> None:
        """Forget all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _packed(tables: list[pa.Table]) -> bytes:
    """An Arrow file with a record batch a table."""
    sink = pa.BufferOutputStream()
    schema = tables[0].schema
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for table in tables:
            columns = [pa.concat_arrays(c.chunks) if c.num_chunks else pa.array([], c.type) for c in table.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())
