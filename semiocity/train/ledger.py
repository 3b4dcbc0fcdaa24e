"""The ledger: which samples went into each batch, as the ranks read them, and the check of it against the order.

    RUN/ledger/0002-00003.jsonl.gz    part 2, rank 3: a head, then a line a step

A *part* begins with every attempt and whenever a run goes back to a checkpoint; its head names its first step, and what
earlier parts say of that step and those after it no longer counts. Lines are written in gzip members of their own, made
durable before a checkpoint is published: after a kill nothing is lost that is not done again.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semiocity.data.columns import Dataset, View
from semiocity.data.loader import Slice
from semiocity.data.order import Order, refuse_other
from semiocity.errors import UserError
from semiocity.files import canonical

FORMAT = 1
FLUSH_STEPS = 256
MOST_FAULTS = 20
"""Faults that are listed; a check goes on counting."""


def folder_of(run: Path) -> Path:
    """Where a run's ledger lies."""
    return run / "ledger"


def next_part(run: Path) -> int:
    """Number for the part that begins now. Rank 0 asks, and tells the others."""
    return max((int(path.name.partition("-")[0]) for path in folder_of(run).glob("*.jsonl.gz")), default=0) + 1


class Ledger:
    """One rank's file of a part."""

    def __init__(self, run: Path, part: int, rank: int, head: dict[str, Any]) -> None:
        """`head`: first_step, ranks, steps, dataset, shards, fields, split, saved_view and the order's facts."""
        folder = folder_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{part:04d}-{rank:05d}.jsonl.gz").open("xb")
        self._lines = [canonical({"format": FORMAT, "part": part, "rank": rank, **head})]
        self.flush()

    def note(self, part: Slice) -> None:
        """A step that was trained on."""
        line = {
            "step": part.step,
            "bucket": part.bucket,
            "rows": part.rows.tolist(),
            "keys": part.keys,
            "real": int((part.weights > 0).sum()),
        }
        self._lines.append(canonical(line))
        if len(self._lines) >= FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Make all lines durable; belongs before a checkpoint is published."""
        if self._lines:
            self._file.write(gzip.compress("".join(f"{line}\n" for line in self._lines).encode(), 6, mtime=0))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._lines.clear()

    def close(self) -> None:
        self.flush()
        self._file.close()


class _Part(NamedTuple):
    number: int
    files: list[Path]
    """By rank."""
    head: dict[str, Any]
    """Rank 0's."""


@dataclass
class Checked:
    """What a check found."""

    run: str
    steps: int = 0
    """Steps that the ledger tells of without a gap, from 0."""
    of: int = 0
    """Steps that the training is to have."""
    parts: list[dict[str, int]] = field(default_factory=list)
    """Part, first step, steps that count, ranks."""
    epochs: list[dict[str, int]] = field(default_factory=list)
    """For each epoch that has begun: rows seen, batches, rows dropped and places padded so far."""
    rows: int = 0
    faults: list[str] = field(default_factory=list)
    more_faults: int = 0

    @property
    def ok(self) -> bool:
        return not self.faults

    def fault(self, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)
        else:
            self.more_faults += 1


def check(run: Path, dataset: Path | None = None) -> Checked:
    """Compare a run's ledger with the pure order, batch by batch, and count every sample of every epoch.

    `dataset` where it lies now, if not where the run read it. UserError when there is no ledger or no dataset.
    """
    parts = _parts(run)
    head = parts[-1].head
    where = dataset or Path(head["dataset"])
    view = Dataset.as_of(where, head["shards"]).pick(head["fields"], head["split"], head.get("saved_view"))
    found = Checked(str(run), of=head["steps"])
    order = order_again(view, head["order"])
    for part in parts:
        try:
            refuse_other(part.head["order"], order.facts, f"part {part.number}")
        except UserError as error:
            found.fault(str(error))
    if found.ok:
        _check_steps(found, parts, order, view)
    return found


def order_again(view: View, facts: dict[str, Any]) -> Order:
    """The order that these facts name, over a view as it is now."""
    from semiocity.data.aspects import bucketed

    sizes = facts["buckets"]
    buckets = bucketed(view, [(width, height) for width, height in sizes]) if sizes else None
    return Order(
        view.digest, view.shard_sizes, facts["seed"], facts["global_batch"], facts["window"], facts["tail"], buckets
    )


def read_steps(run: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Each step that counts, in order, with a line a rank: step, bucket, rows, keys, real (rows not at weight 0)."""
    for _, step, lines in _steps(_parts(run)):
        yield step, lines


def _steps(parts: list[_Part]) -> Iterator[tuple[_Part, int, list[dict[str, Any]]]]:
    for i, part in enumerate(parts):
        # What was done again from an earlier step on no longer counts.
        end = min((later.head["first_step"] for later in parts[i + 1 :]), default=None)
        for step, lines in enumerate(zip(*(_lines(file) for file in part.files)), part.head["first_step"]):
            if end is not None and step >= end:
                break
            yield part, step, list(lines)


def _check_steps(found: Checked, parts: list[_Part], order: Order, view: View) -> None:
    count = _Count(found, order)
    told = {part.number: {"part": part.number, **_place(part), "steps": 0} for part in parts}
    for part, step, lines in _steps(parts):
        if step != found.steps:
            found.fault(f"steps {found.steps} to {step - 1} are missing; part {part.number} goes on at step {step}")
            break
        _check_step(found, part, order, view, step, lines)
        count.add(step, [row for line in lines for row in line["rows"][: line["real"]]])
        told[part.number]["steps"] += 1
        found.steps = step + 1
    found.parts = [facts for facts in told.values() if facts["steps"]]
    count.close()


def _place(part: _Part) -> dict[str, int]:
    return {"first_step": part.head["first_step"], "ranks": part.head["ranks"]}


def _check_step(found: Checked, part: _Part, order: Order, view: View, step: int, lines: list[dict[str, Any]]) -> None:
    where = f"step {step} (part {part.number})"
    if any(line["step"] != step for line in lines):
        found.fault(f"{where}: the ranks' lines are of steps {', '.join(str(line['step']) for line in lines)}")
        return
    batch = order.batch(step)
    rows = [row for line in lines for row in line["rows"]]
    keys = [key for line in lines for key in line["keys"]]
    if rows != batch.rows.tolist():
        place = next((i for i, pair in enumerate(zip(rows, batch.rows)) if pair[0] != pair[1]), len(rows))
        found.fault(f"{where}: other rows than the order says, from place {place} of the global batch on")
    elif any(line["bucket"] != batch.bucket for line in lines):
        found.fault(f"{where}: another bucket than {batch.bucket}, which the order says")
    elif sum(line["real"] for line in lines) != int((batch.weights > 0).sum()):
        found.fault(f"{where}: other rows at weight 0 than the order says")
    for row, key in zip(rows, keys):
        if 0 <= row < len(view) and view.key(row) != key:
            found.fault(f"{where}: row {row} was {key}, it is {view.key(row)} in the dataset now")
            break


class _Count:
    """Counts the samples of each epoch: exactly once, but for the tail."""

    def __init__(self, found: Checked, order: Order) -> None:
        self.found, self.order = found, order
        self.seen = np.zeros(order.rows, bool)
        found.rows = order.rows

    def add(self, step: int, rows: list[int]) -> None:
        """The real rows of a step; steps come in order."""
        epoch = step // self.order.steps_per_epoch
        if epoch == len(self.found.epochs):
            self.close()
            self.seen[:] = False
            self.found.epochs.append({"epoch": epoch, "rows": 0, "batches": 0, "padded": 0, "left_out": 0})
        entry = self.found.epochs[-1]
        for row in rows:
            if not 0 <= row < len(self.seen) or self.seen[row]:
                self.found.fault(f"step {step}: row {row} comes a second time in epoch {epoch}, or is none of the view")
            else:
                self.seen[row] = True
        entry["rows"] += len(rows)
        entry["batches"] += 1
        entry["padded"] += self.order.global_batch - len(rows)

    def close(self) -> None:
        """The end of an epoch: what it left out must be what the tail says."""
        if not self.found.epochs or self.found.epochs[-1]["batches"] < self.order.steps_per_epoch:
            return
        entry, order = self.found.epochs[-1], self.order
        entry["left_out"] = int((~self.seen).sum())
        wanted = {"drop": (order.left_over, 0), "pad": (0, order.left_over)}[order.tail]
        if (entry["left_out"], entry["padded"]) != wanted:
            self.found.fault(
                f"epoch {entry['epoch']}: {entry['left_out']} rows left out and {entry['padded']} places padded; "
                f'with tail = "{order.tail}" it must be {wanted[0]} and {wanted[1]}'
            )


def _parts(run: Path) -> list[_Part]:
    """The parts of a ledger in their order. Of a part that was killed before every rank had begun nothing counts."""
    files: dict[int, dict[int, Path]] = {}
    for path in sorted(folder_of(run).glob("*.jsonl.gz")):
        part, rank = path.name.removesuffix(".jsonl.gz").split("-")
        files.setdefault(int(part), {})[int(rank)] = path
    parts = []
    for number, ranks in sorted(files.items()):
        heads = {rank: next(_lines(path, head=True), None) for rank, path in ranks.items()}
        head = next((found for found in heads.values() if found), None)
        if head is None:
            continue
        if head["format"] != FORMAT:
            raise UserError(f"{folder_of(run)}: format {head['format']}, this version reads {FORMAT}")
        if all(heads.get(rank) for rank in range(head["ranks"])):
            parts.append(_Part(number, [ranks[rank] for rank in range(head["ranks"])], head))
    if not parts:
        raise UserError(f"{run}: no ledger here; set data.ledger = true before a training begins")
    return parts


def _lines(path: Path, head: bool = False) -> Iterator[dict[str, Any]]:
    """The head of a file alone, or its steps. What a kill cut off at its end is left out."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            first = json.loads(next(file))
            if head:
                yield first
                return
            yield from map(json.loads, file)
    except (EOFError, OSError, zlib.error, StopIteration, json.JSONDecodeError):
        return
