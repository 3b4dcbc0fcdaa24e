"""Runs a reduce stage: gathers from every shard, concludes, writes the shards that are missing.

A task that is stopped while it writes goes on with the shards that are left; what it gathered and concluded it does
anew, which costs a small part of the whole. Shards whose rows are those of the revision before are linked, not written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.data import manifest
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import ShardPath, column_folder, read_receipt
from semiocity.data.shard import Head, ShardWriter
from semiocity.errors import Stopped, UserError
from semiocity.stages.base import Made, Tombstone
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
    if revision(reduce, facts) != column_revision:
        raise UserError(
            f"{dataset}: column {column}: revision {column_revision} was to be made, but dataset and arguments now "
            f"give {revision(reduce, facts)}: they changed since the job was submitted; submit it again"
        )
    target = Target(reduce, Dataset.open(dataset), column, column_revision, facts["columns"].get(column, {}))
    todo = [shard for shard in shards if not target.is_made(shard)]
    if not todo:
        return True
    gathered = []
    for part in target.gather():
        gathered.append(part)
        report({"gathered": len(gathered), "of_shards": target.dataset.shards})
        if stop():
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
    return True


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

    def gather(self) -> Iterator[Any]:
        """What the stage remembers of each shard, in order."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="gather") as pool:
            try:
                yield from pool.map(
                    lambda shard: self.reduce.gather(live(self.dataset, shard, self.reduce.needs())),
                    range(self.dataset.shards),
                )
            finally:
                pool.shutdown(cancel_futures=True)

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
