"""Runs a reduce stage: gathers from every shard, concludes, writes the shards that are missing.

What was gathered is in a journal until the last shard is there (`semiocity/stages/gathered.py`), so that a task which
was stopped goes on behind it; what it concluded it thinks anew. Shards whose rows are those of the revision before are
linked, not written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from semiocity.data import manifest
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import ShardPath, column_folder, read_receipt
from semiocity.data.shard import Head, ShardWriter
from semiocity.errors import Stopped, UserError
from semiocity.stages.base import Made, Tombstone
from semiocity.stages.gathered import GROUP_SHARDS, Journal
from semiocity.stages.indexes import live, tombstones
from semiocity.stages.reduce import Reduce, Stop, parents_of, revision
from semiocity.stages.relink import relink

Report = Callable[[dict[str, Any]], None]
READERS = 8
"""Indexes read at the same time: on a network file system most of the time is waiting."""


def run_reduce(
    reduce: Reduce,
    dataset: Path,
    column: str,
    column_revision: str,
    shards: Sequence[int],
    owner: Owner,
    stop: Stop = lambda: False,
    report: Report = lambda facts: None,
    gone: Callable[[Owner], bool] = lambda holder: False,
) -> bool:
    """Make those of `shards` that are not there yet. Returns False when `stop` said to leave early.

    `report` gets {"gathered", "of_shards"} and then {"shard", "done_shards", "shards", "linked_shards"}.
    Raises UserError when the dataset lacks what is needed, when `column_revision` is not what it gives now (it changed
    since the job was submitted), or when a parent's shard is damaged.
    """
    facts = manifest.read_manifest(dataset)
    manifest.require(facts, reduce.needs(), dataset)
    journal = Journal(column_folder(dataset, column, column_revision))
    if revision(reduce, facts) != column_revision:
        journal.remove()  # of rows that are no longer those
        raise UserError(
            f"{dataset}: column {column}: revision {column_revision} was to be made, but dataset and arguments now "
            f"give {revision(reduce, facts)}: they changed since the job was submitted; submit it again"
        )
    target = Target(reduce, Dataset.open(dataset), column, column_revision, facts["columns"].get(column, {}))
    todo = [shard for shard in shards if not target.is_made(shard)]
    if not todo:
        journal.remove()
        return True
    gathered = _gather(target, journal, stop, report)
    if gathered is None:
        return False
    try:
        conclusion = reduce.conclude(gathered, len(os.sched_getaffinity(0)), stop)
    except Stopped:
        return False
    linked, done = 0, len(shards) - len(todo)
    for shard in todo:
        if stop():
            return False
        with lease(target.path(shard).lease, owner, gone=gone) as held:
            if not held:
                report({"leased": shard})
                continue
            if not target.is_made(shard):  # by whoever held the lease until now
                linked += target.make(shard, conclusion)
        done += 1
        report({"shard": shard, "done_shards": done, "shards": len(shards), "linked_shards": linked})
    journal.remove()
    return True


def _gather(target: Target, journal: Journal, stop: Stop, report: Report) -> list[Any] | None:
    """What the stage remembers of each shard: from the journal, then from the indexes. None when stopped."""
    gathered: list[Any] = []

    def remember(table: pa.Table) -> bool:
        gathered.append(target.reduce.gather(table))
        report({"gathered": len(gathered), "of_shards": target.dataset.shards})
        return stop()

    for table in journal.read():
        remember(table)
    kept = len(gathered)
    for table in target.read(range(kept, target.dataset.shards)):
        journal.add(table)
        if remember(table):
            journal.flush()
            return None
    if len(gathered) - kept >= GROUP_SHARDS:
        journal.flush()  # few shards are read again in the time that writing them takes
    return gathered


@dataclass(frozen=True)
class Target:
    """The column that is being made."""

    reduce: Reduce
    dataset: Dataset
    column: str
    revision: str
    before: dict[str, Any]
    """What the dataset's manifest says of the column as it is now; empty when there is none."""

    def path(self, shard: int) -> ShardPath:
        return ShardPath(column_folder(self.dataset.path, self.column, self.revision), shard)

    def is_made(self, shard: int) -> bool:
        """Whether the shard is there. Its revision names all of the parents' bytes, so that needs no further look."""
        path = self.path(shard)
        return read_receipt(path) is not None and path.tar.exists() and path.parquet.exists()

    def read(self, shards: range) -> Iterator[pa.Table]:
        """What the stage asks of each shard's indexes, in order; a few are read ahead."""
        todo = iter(shards)
        with ThreadPoolExecutor(READERS, thread_name_prefix="gather") as pool:
            ahead = deque(pool.submit(self._live, shard) for shard in islice(todo, 2 * READERS))
            try:
                while ahead:
                    table = ahead.popleft().result()
                    ahead.extend(pool.submit(self._live, shard) for shard in islice(todo, 1))
                    yield table
            finally:
                pool.shutdown(cancel_futures=True)

    def _live(self, shard: int) -> pa.Table:
        return live(self.dataset, shard, self.reduce.needs())

    def make(self, shard: int, conclusion: Any) -> bool:
        """Make one shard, whose lease the caller holds. True when it could be linked."""
        reduce = self.reduce
        entries = {name: self.dataset.shard_entries(name)[shard] for name in parents_of(reduce)}
        head = Head(
            column=self.column,
            revision=self.revision,
            shard=shard,
            parents={
                name: {"revision": self.dataset.column(name).revision, "sha256": entry["sha256"]}
                for name, entry in entries.items()
            },
            stage={"name": reduce.name, "version": reduce.version, "args": reduce.settings()},
            model=None,
            execution={"device": "cpu", "dtype": "float64", "batch": 1},
            fields=reduce.fields(),
            scalars=reduce.scalars(),
        )
        rows = self._rows(shard, conclusion)
        if self.before and self.before["revision"] != self.revision:
            old = ShardPath(column_folder(self.dataset.path, self.column, self.before["revision"]), shard)
            if relink(old, self.path(shard), head, rows):
                return True
        with ShardWriter(self.path(shard), head) as writer:
            for key, row in rows:
                match row:
                    case Made(fields, scalars):
                        writer.add(key, fields, scalars)
                    case Tombstone(kind, reason):
                        writer.tombstone(key, kind, reason)
            writer.publish()
        return False

    def _rows(self, shard: int, conclusion: Any) -> list[tuple[str, Made | Tombstone]]:
        """Key and row: the stage's own, and a tombstone for each row that failed in a parent."""
        keys, dead = tombstones(self.dataset, shard, parents_of(self.reduce))
        made = iter(self.reduce.rows(conclusion, shard))
        return [(key, Tombstone(*dead[key]) if key in dead else next(made)) for key in keys]  # type: ignore[arg-type]
