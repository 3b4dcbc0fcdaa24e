"""Runs a stage over shards: reads the parents, cuts batches at fixed borders, isolates rows that fail, writes.

A shard is made whole or not at all. What it holds depends on the parents' bytes, the stage and its execution class:
not on which task made it, when it was stopped, or what else failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semiocity.data import manifest
from semiocity.data.results import write
from semiocity.errors import OutOfMemory, UserError
from semiocity.stages import faults
from semiocity.stages.base import DatasetInfo, Stage, Tombstone, check_needs, parents_of, revision
from semiocity.stages.target import Target

if TYPE_CHECKING:
    from semiocity.data.journal import Journal
    from semiocity.data.lease import Owner
    from semiocity.stages.hands import Hands

Stop = Callable[[], bool]
Report = Callable[[dict[str, Any]], None]
Ended = Callable[[dict[str, Any]], str | None]
"""Of an earlier owner, as in a lease: "crash" or "out_of_memory" when a witness saw it die so, else None."""


def run_shards(
    stage: Stage,
    dataset: Path,
    column: str,
    column_revision: str,
    shards: Sequence[int],
    owner: Owner,
    stop: Stop = lambda: False,
    report: Report = lambda facts: None,
    *,
    careful: bool = False,
    ended: Ended = lambda owner: None,
    gone: Callable[[Owner], bool] = lambda owner: False,
) -> bool:
    """Make those of `shards` that are not there yet. Returns False when `stop` said to leave early.

    A shard is there when its receipt names the parents' present shards and no row waits to be tried again. A shard
    whose lease somebody alive holds is left to them and reported as `leased`; `gone` tells who is not alive. `stop` is
    asked between batches; what is done is kept in the shard's journal. `report` gets {"shard", "rows", "of",
    "rows_per_s", "done_shards", "shards"}.

    Shards in which an attempt died come first, and the stage works on them in a process of its own, so that the rows
    that kill become tombstones; with `careful` it does so on all.

    Raises UserError when the dataset lacks what the stage needs, when `column_revision` is not what stage, weights and
    dataset give (they changed since the job was submitted), or when a parent's shard is missing or damaged.
    """
    from semiocity.data.lease import lease
    from semiocity.data.relink import link_shard
    from semiocity.stages.hands import Apart, Here

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
    risky = set(shards) if careful else {shard for shard in shards if target.risky(shard)}
    with ExitStack() as both:
        apart, here = Apart(stage), Here(stage)
        both.callback(apart.close)
        # A child cannot be forked once this process has loaded the stage onto a GPU: what needs one comes first.
        for done, shard in enumerate(sorted(shards, key=lambda shard: shard not in risky)):
            if stop():
                return False
            path = target.path(shard)
            progress = {"shard": shard, "done_shards": done, "shards": len(shards)}
            if target.is_made(shard):
                if shard in risky:
                    path.journal.unlink(missing_ok=True)  # its owner died just after publishing
                report(progress | {"done_shards": done + 1})
                continue
            with lease(path.lease, owner, gone=gone) as held:
                if not held:
                    report(progress | {"leased": shard})
                    continue
                if target.is_made(shard):  # by whoever held the lease until now
                    continue
                if (twin := target.twin(shard)) is not None:
                    link_shard(twin, path, {"revision": column_revision, "parents": target.sources(shard)})
                    path.journal.unlink(missing_ok=True)
                    report(progress | {"done_shards": done + 1})
                    continue
                hands = apart if shard in risky else here
                if hands is here:
                    apart.close()
                shard_maker = ShardMaker(target, shard, hands, owner, ended)
                if not shard_maker.make(stop, partial(_report, report, progress)):
                    return False
            report(progress | {"done_shards": done + 1})
    return True


def _report(report: Report, known: dict[str, Any], rows: dict[str, Any]) -> None:
    report(known | rows)


class ShardMaker:
    """Makes one shard, whose lease the caller holds."""

    def __init__(self, target: Target, shard: int, hands: Hands, owner: Owner, ended: Ended) -> None:
        from semiocity.data.shard import Head

        stage = target.stage
        self.target, self.shard, self.hands, self.owner, self.ended = target, shard, hands, owner, ended
        self.path = target.path(shard)
        self.head = Head(
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

    def make(self, stop: Stop, report: Report) -> bool:
        """Publish the shard; False when stopped."""
        from semiocity.data.journal import Journal
        from semiocity.stages.batches import Shrink

        self.hands.load(self.target.info, str(self.head.execution["device"]))
        journal = Journal(self.path, asdict(self.head), self.head.execution["batch"], asdict(self.owner))
        try:
            while True:
                try:
                    return self._fill(journal, stop, report)
                except Shrink as smaller:
                    report({"shrunk_to": smaller.batch})
                    journal.shrink(smaller.batch)
        except BaseException as error:
            # A GPU that went down leaves the journal as a killed process does: the next attempt looks for the row.
            if not (isinstance(error, Exception) and faults.device_lost(error)):
                journal.left()
            raise
        finally:
            journal.close()

    def _fill(self, journal: Journal, stop: Stop, report: Report) -> bool:
        from semiocity.data.shard import ShardWriter
        from semiocity.stages.batches import make_batch
        from semiocity.stages.inputs import Inputs, ahead

        alone, deadly = self._after_a_death(journal)
        with ExitStack() as open_files:
            inputs = Inputs(self.target, self.shard, open_files)
            writer = open_files.enter_context(ShardWriter(self.path, self.head))
            made = sum(write(writer, key, result) for key, result in journal.replay())
            if deadly is not None:
                key = inputs.keys[journal.done]
                write(writer, key, deadly)
                journal.add(journal.done, [(key, deadly)], 1, deadly.reason)
            begun, began, error = journal.done, time.monotonic(), None
            for batch in ahead(inputs.batches(journal.batch, journal.done), open_files):
                if stop():
                    journal.left()
                    return False
                taken_apart = alone or journal.done % journal.batch != 0
                end = journal.done + len(batch)
                for piece in make_batch(self.hands, journal, batch, journal.done, taken_apart):
                    made += sum(write(writer, key, result) for key, result in piece.results)
                    error = error or (piece.failure and piece.failure.error)
                    why = piece.failure.tombstone.reason if piece.failure else None
                    journal.add(journal.done, piece.results, piece.size, why)
                    if journal.done < end and stop():
                        journal.left()
                        return False
                alone = False
                time.sleep(self.target.stage.args.rehearse_slow_batch_s)
                speed = (journal.done - begun) / max(time.monotonic() - began, 1e-6)
                report({"rows": journal.done, "of": len(inputs.keys), "rows_per_s": round(speed, 2)})
            if made == 0 and journal.trouble is not None:
                journal.remove()
                self._refuse(journal.trouble, error)
            if journal.smallest < self.head.execution["batch"]:
                shrunk = {"batch": journal.batch, "shrunk_to": journal.smallest}
                writer.head = replace(self.head, execution={**self.head.execution, **shrunk})
            writer.publish()
        journal.remove()
        return True

    def _after_a_death(self, journal: Journal) -> tuple[bool, Tombstone | None]:
        """Whether to go row by row, and what stands for the next row if it is known to kill.

        For rows at which an attempt died although its stage had a process of its own: something ends all processes of
        the job, so that only the batch script saw it.
        """
        died = journal.died
        cause = self.ended(died.owner) if died is not None and died.apart else None
        if died is None or cause is None:
            return False, None
        if cause == "out_of_memory" and journal.batch > 1:
            journal.shrink(journal.batch // 2)
            return False, None
        if died.rows > 1:
            return True, None
        kind: Literal["retry", "permanent"] = "retry" if cause == "out_of_memory" else "permanent"
        return True, Tombstone(kind, f"{faults.KILLED} and its task: {cause.replace('_', ' ')}")

    def _refuse(self, reason: str, error: Exception | None) -> None:
        """A shard in which every row failed by an exception says something about the stage, not about the rows."""
        where = f"{self.target.dataset}: column {self.target.column}: shard {self.shard:08d}"
        if faults.OUT_OF_MEMORY in reason:
            raise OutOfMemory(
                f"{where}: every row ran out of memory; ask for more memory, or lower args.batch"
            ) from error
        raise RuntimeError(f"{where}: no row succeeded ({reason}); not published") from error
