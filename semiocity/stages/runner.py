"""Runs a stage over shards: reads the parents, cuts batches at fixed borders, isolates rows that fail, writes.

A shard is made whole or not at all. What it holds depends on the parents' bytes, the stage and its execution class:
not on which task made it, when it was stopped, or what else failed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.data import manifest
from semiocity.data.manifest import BASE, ShardPath, column_folder, complete, read_receipt
from semiocity.errors import UserError
from semiocity.stages.base import (
    BadRow,
    DatasetInfo,
    Made,
    Row,
    Stage,
    Tombstone,
    check_needs,
    parents_of,
    revision,
)

if TYPE_CHECKING:
    from semiocity.data.lease import Owner
    from semiocity.data.shard import ShardReader

Stop = Callable[[], bool]
Report = Callable[[dict[str, Any]], None]

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
LONGEST_REASON = 200


def run_shards(
    stage: Stage,
    dataset: Path,
    column: str,
    column_revision: str,
    shards: Sequence[int],
    owner: Owner,
    stop: Stop = lambda: False,
    report: Report = lambda facts: None,
) -> bool:
    """Make those of `shards` that are not there yet. Returns False when `stop` said to leave early.

    A shard is there when its receipt names the parents' present shards and no row waits to be tried again. A shard
    whose lease somebody alive holds is left to them and reported as `leased`. `stop` is asked between batches; nothing
    half-made remains. `report` gets {"shard", "rows", "of", "rows_per_s", "done_shards", "shards"}.

    Raises UserError when the dataset lacks what the stage needs, when `column_revision` is not what stage, weights and
    dataset give (they changed since the job was submitted), or when a parent's shard is missing or damaged.
    """
    from semiocity.data.lease import lease
    from semiocity.data.relink import link_shard

    facts = manifest.read_manifest(dataset)
    check_needs(stage, facts)
    parents = {name: facts["columns"][name]["revision"] for name in parents_of(stage)}
    if revision(stage, parents) != column_revision:
        raise UserError(
            f"{dataset}: column {column}: revision {column_revision} was to be made, but dataset, weights and "
            f"arguments now give {revision(stage, parents)}: they changed since the job was submitted; submit it again"
        )
    target = Target(stage, Path(dataset), column, column_revision, parents, DatasetInfo.of(facts))
    stage.info = target.info
    loaded = False
    for done, shard in enumerate(shards):
        if stop():
            return False
        path = target.path(shard)
        progress = {"shard": shard, "done_shards": done, "shards": len(shards)}
        if target.is_made(shard):
            report(progress | {"done_shards": done + 1})
            continue
        with lease(path.lease, owner) as held:
            if not held:
                report(progress | {"leased": shard})
                continue
            if target.is_made(shard):  # by whoever held the lease until now
                continue
            if (twin := target.twin(shard)) is not None:
                link_shard(twin, path, {"revision": column_revision, "parents": target.sources(shard)})
                report(progress | {"done_shards": done + 1})
                continue
            if not loaded:
                stage.load(target.info, _device(stage))
                loaded = True
            if not _make_shard(target, shard, stop, partial(_report, report, progress)):
                return False
        report(progress | {"done_shards": done + 1})
    return True


def _device(stage: Stage) -> str:
    """The device of the stage's execution class. Raises UserError when this node does not have it."""
    device = stage.execution()["device"]
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                'args.device is "cuda", but this node has no usable GPU; ask for one with resources.gpus_per_node = 1, '
                'or set args.device = "cpu"'
            )
    return str(device)


def _report(report: Report, known: dict[str, Any], rows: dict[str, Any]) -> None:
    report(known | rows)


@dataclass(frozen=True)
class Target:
    """The column that is being made."""

    stage: Stage
    dataset: Path
    column: str
    revision: str
    parents: dict[str, str]
    """Parent column → revision."""
    info: DatasetInfo

    def path(self, shard: int) -> ShardPath:
        return ShardPath(column_folder(self.dataset, self.column, self.revision), shard)

    def parent_path(self, parent: str, shard: int) -> ShardPath:
        return ShardPath(column_folder(self.dataset, parent, self.parents[parent]), shard)

    def sources(self, shard: int) -> dict[str, dict[str, str]]:
        """Parent → revision and sha256 of its shard. Raises UserError when a parent's shard is missing."""
        found = {}
        for parent in self.parents:
            path = self.parent_path(parent, shard)
            receipt = read_receipt(path)
            if receipt is None:
                raise UserError(f"{path.receipt}: no such shard; run the job that makes column {parent} again")
            found[parent] = {"revision": receipt["revision"], "sha256": receipt["sha256"]}
        return found

    def is_made(self, shard: int) -> bool:
        """Whether the shard is there, from the present parents, with no row to be tried again."""
        path = self.path(shard)
        receipt = read_receipt(path)
        return (
            receipt is not None
            and path.tar.exists()
            and path.parquet.exists()
            and receipt["revision"] == self.revision
            and receipt["parents"] == self.sources(shard)
            and not receipt["tombstones"]["retry"]
        )

    def twin(self, shard: int) -> ShardPath | None:
        """The shard in another revision of the column, if that was made by the same stage from the same bytes.

        A parent that is made anew, as by correcting a few captions, leaves most of its shards as they were.
        """
        wanted = {name: parent["sha256"] for name, parent in self.sources(shard).items()}
        made = {
            "stage": {"name": self.stage.name, "version": self.stage.version, "args": self.stage.settings()},
            "model": self.stage.model_revision(),
            "execution": self.stage.execution(),
            "fields": self.stage.fields(),
            "scalars": self.stage.scalars(),
        }
        made = json.loads(json.dumps(made))
        for folder in sorted(self.path(shard).folder.parent.glob("*/")):
            path = ShardPath(folder, shard)
            if folder.name == self.revision or not complete(path):
                continue
            receipt = read_receipt(path)
            if (
                receipt is not None
                and {name: receipt[name] for name in made} == made
                and {name: parent["sha256"] for name, parent in receipt["parents"].items()} == wanted
                and not receipt["tombstones"]["retry"]
                # The names of the classes are the base's, and no bytes that a receipt knows of.
                and self._base(receipt) == self._base({"shard": shard, "parents": self.sources(shard)})
            ):
                return path
        return None

    def _base(self, receipt: dict[str, Any]) -> str | None:
        """The revision of base that a shard was made from in the end."""
        for name, parent in receipt["parents"].items():
            if name == BASE:
                return str(parent["revision"])
            above = read_receipt(ShardPath(column_folder(self.dataset, name, parent["revision"]), receipt["shard"]))
            return None if above is None else self._base(above)
        return None


def _make_shard(target: Target, shard: int, stop: Stop, report: Report) -> bool:
    """Make one shard; False when stopped. The caller holds its lease and has loaded the stage."""
    from semiocity.data.shard import Head, ShardWriter

    stage = target.stage
    head = Head(
        column=target.column,
        revision=target.revision,
        shard=shard,
        parents=target.sources(shard),
        stage={"name": stage.name, "version": stage.version, "args": stage.settings()},
        model=stage.model_revision(),
        execution=stage.execution(),
        fields=stage.fields(),
        scalars=stage.scalars(),
    )
    with ExitStack() as open_files:
        inputs = Inputs(target, shard, open_files)
        writer = open_files.enter_context(ShardWriter(target.path(shard), head))
        made, failure, began = 0, None, time.monotonic()
        for rows in _ahead(inputs.batches(stage.execution()["batch"]), open_files):
            if stop():
                return False
            results, error = _process(stage, rows)
            time.sleep(stage.args.rehearse_slow_batch_s)
            failure = failure or error
            if error is not None:
                writer.head = replace(head, execution={**head.execution, "shrunk_to": 1})
            for row, result in zip(rows, results, strict=True):
                key = row[0]
                match result:
                    case Made(fields, scalars):
                        writer.add(key, fields, scalars)
                        made += 1
                    case Tombstone(kind, reason):
                        writer.tombstone(key, kind, reason)
            inputs.done += len(rows)
            speed = inputs.done / max(time.monotonic() - began, 1e-6)
            report({"rows": inputs.done, "of": len(inputs.keys), "rows_per_s": round(speed, 2)})
        if made == 0 and failure is not None:
            _refuse(target, shard, failure)
        writer.publish()
    return True


class Inputs:
    """The rows of one shard of the parents, in batches."""

    def __init__(self, target: Target, shard: int, open_files: ExitStack) -> None:
        from semiocity.data.shard import ShardReader

        self.done = 0
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

    def batches(self, size: int) -> Iterator[list[tuple[str, Row | Tombstone]]]:
        """(key, row) in batches; row i is in batch i // size, whether or not it can be used."""
        for start in range(0, len(self.keys), size):
            yield [(self.keys[i], self.row(i)) for i in range(start, min(start + size, len(self.keys)))]

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


Batch = list[tuple[str, Row | Tombstone]]


def _ahead(batches: Iterator[Batch], open_files: ExitStack) -> Iterator[Batch]:
    """The same batches; one is read while the one before it is processed."""
    pool = open_files.enter_context(ThreadPoolExecutor(1, thread_name_prefix="read"))
    upcoming = pool.submit(next, batches, None)
    while (batch := upcoming.result()) is not None:
        upcoming = pool.submit(next, batches, None)
        yield batch


def _process(stage: Stage, batch: Batch) -> tuple[list[Made | Tombstone], Exception | None]:
    """Results of a batch, and the exception that made it necessary to go row by row, if there was one."""
    usable = [row for _, row in batch if isinstance(row, Row)]
    failure: Exception | None = None
    try:
        made = _call(stage, usable)
    except Exception as error:
        _raise_if_fatal(error)
        failure = error
    if failure is not None:
        _free_memory()
        made = [_process_alone(stage, row) for row in usable]
    results = iter(made)
    return [next(results) if isinstance(row, Row) else row for _, row in batch], failure


def _call(stage: Stage, rows: list[Row]) -> list[Made | Tombstone]:
    results = stage.process(rows) if rows else []
    if len(results) != len(rows):
        raise NotImplementedError(f"stage {stage.name} gave {len(results)} results for {len(rows)} rows")
    return results


def _process_alone(stage: Stage, row: Row) -> Made | Tombstone:
    try:
        return _call(stage, [row])[0]
    except Exception as error:
        _raise_if_fatal(error)
        kept = _tombstone(error)
    _free_memory()
    return kept


def _raise_if_fatal(error: Exception) -> None:
    """Pass on what is no affair of one row: a faulty installation or stage, and a device that will not work again."""
    if isinstance(error, (UserError, ImportError, NotImplementedError)) or str(error).startswith("CUDA error"):
        raise error


def _tombstone(error: Exception) -> Tombstone:
    if _out_of_memory(error):  # its message has numbers that differ from time to time
        return Tombstone("retry", "out of memory")
    text = ADDRESS.sub("", " ".join(str(error).split()))[:LONGEST_REASON]
    if isinstance(error, BadRow):
        return Tombstone("permanent", text)
    kind = "retry" if isinstance(error, OSError) else "permanent"
    return Tombstone(kind, f"{type(error).__name__}: {text}")  # type: ignore[arg-type]


def _out_of_memory(error: Exception) -> bool:
    # By name, since torch may not be installed where stages without weights run.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _free_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _refuse(target: Target, shard: int, failure: Exception) -> None:
    """A shard in which every row failed by an exception says something about the stage, not about the rows."""
    where = f"{target.dataset}: column {target.column}: shard {shard:08d}"
    if _out_of_memory(failure):
        raise UserError(f"{where}: every row ran out of memory; ask for more memory, or lower args.batch") from failure
    raise RuntimeError(f"{where}: no row succeeded; not published") from failure
