"""The rows of one shard of a stage's parents, in batches with fixed borders."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from semiocity.data.shard import ShardReader
from semiocity.errors import UserError
from semiocity.stages.base import Row, Tombstone
from semiocity.stages.target import Target

Batch = list[tuple[str, Row | Tombstone]]


class Inputs:
    """The rows of one shard of the parents, in batches."""

    def __init__(self, target: Target, shard: int, open_files: ExitStack) -> None:
        self.readers: dict[str, ShardReader] = {}
        for parent in target.parents:
            self.readers[parent] = open_files.enter_context(ShardReader(target.parent_path(parent, shard)))
        first = next(iter(self.readers.values()))
        self.keys = first.keys
        for reader in self.readers.values():
            if reader.keys != self.keys:
                raise UserError(f"{reader.path}: its keys are not those of {first.path}; run `semiocity verify`")
        self.needs = [reference.split(".", 1) for reference in target.stage.needs()]
        self.wants = [
            (column, field)
            for column, field in (reference.split(".", 1) for reference in target.stage.wants())
            if column in self.readers and self.readers[column].has(field)
        ]

    def batches(self, size: int, begin: int = 0) -> Iterator[Batch]:
        """(key, row) from row `begin` in batches; row i is in batch i // size, whether or not it can be used."""
        while begin < len(self.keys):
            end = min((begin // size + 1) * size, len(self.keys))
            yield [(self.keys[i], self.row(i)) for i in range(begin, end)]
            begin = end

    def row(self, i: int) -> Row | Tombstone:
        """Row i, or why it cannot be used. Damage in a parent's shard raises ShardError: it is not the row's fault."""
        for column, reader in self.readers.items():
            dead = reader.tombstoned(i)
            if dead is not None:
                kind, reason = dead
                return Tombstone("retry" if kind == "retry" else "permanent", f"{column}: {reason}")
        fields: dict[str, bytes | None] = {}
        for column, field in self.needs:
            payload = self.readers[column].read(i, field)
            if payload is None:
                return Tombstone("permanent", f"the row has no {column}.{field}")
            fields[f"{column}.{field}"] = payload
        for column, field in self.wants:
            fields[f"{column}.{field}"] = self.readers[column].read(i, field)
        scalars = {
            f"{c}.{name}": value for c, reader in self.readers.items() for name, value in reader.scalars(i).items()
        }
        return Row(self.keys[i], fields, scalars)


def ahead(batches: Iterator[Batch], open_files: ExitStack) -> Iterator[Batch]:
    """The same batches; one is read while the one before it is processed."""
    pool = open_files.enter_context(ThreadPoolExecutor(1, thread_name_prefix="read"))
    upcoming = pool.submit(next, batches, None)
    while (batch := upcoming.result()) is not None:
        upcoming = pool.submit(next, batches, None)
        yield batch
