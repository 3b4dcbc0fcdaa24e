"""What a training reads: its view, the order of the samples, their rows, copies on the node's disk, and the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiocity.data.aspects import bucketed, first_of_bucket
from semiocity.data.columns import Dataset, View
from semiocity.data.loader import Collate, Rows, Slice, slices
from semiocity.data.order import Batch, Order
from semiocity.data.staging import Stage, Stager, files_of
from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.train import zero
from semiocity.train.ledger import Ledger, next_part
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import Task, Tensors
from semiocity.train.zero import World

WINDOWS_AHEAD = 2
"""Windows beyond the present one whose shards are copied to the node."""


class Feed:
    """The data side of a training on one rank. Collective: all ranks make it and call `start` and `flush` together."""

    def __init__(self, job: TrainJob, run: Path, dataset: Path, world: World) -> None:
        self.job, self.run, self.world = job, run, world
        self._opened = open_as_begun(dataset, run, world)
        if job.data.stage_to:
            self._opened.stage = Stage.at(job.data.stage_to)
        self.view = self._pick(job.data.split)
        self.data = self.view.dataset
        """The dataset as the view sees it: a saved view pins revisions."""
        self.order = make_order(self.view, job, world)
        self.sizes = [(height, width) for width, height in job.data.bucket_sizes] or [job.data.height_width]
        """Height and width of each bucket."""
        self._ledger: Ledger | None = None
        self._stager: Stager | None = None
        self._window = -1

    def read_by(self, task: Task) -> None:
        """Rows from now on are decoded and collated by this task."""
        data, fields = self.job.data, self.job.fields_by_role()
        self._collate: Collate = task.collate
        self.rows = Rows(ByRole(self.view, fields), task.decode, data.cache_mb // max(data.workers, 1))
        self._sampled = self._pick(self.job.sample_split) if self.job.sample_split else self.view
        self.samples = Rows(ByRole(self._sampled, fields), task.decode)
        """Rows that image grids show."""
        if self.job.validate_every:
            self.held_out = self._pick(self.job.validate_split)
            self.validated = Rows(ByRole(self.held_out, fields), task.decode)

    def _pick(self, split: str) -> View:
        fields = sorted(set(self.job.fields_by_role().values()))
        return self._opened.pick(fields, split or None, self.job.data.view)

    def slices(self, first: int, pin_memory: bool) -> Iterator[Slice]:
        """This rank's slices from step `first` on, in order. A new part of the ledger begins."""
        data = self.job.data
        self.close()
        if data.ledger:
            self._ledger = self._open_ledger(first)
        if data.stage_to and self.world.local_rank == 0:
            assert self.data.stage is not None
            self._stager = Stager(self.data.stage, data.stage_mb)
        self._stage_ahead(first)
        for part in slices(
            self.rows,
            self.order,
            rank=self.world.rank,
            world=self.world.size,
            steps=range(first, self.job.steps),
            collate=self._collate,
            sizes=self.sizes,
            workers=data.workers,
            prefetch=data.prefetch,
            pin_memory=pin_memory,
            with_keys=data.ledger,
        ):
            self._stage_ahead(part.step)
            yield part

    def done(self, part: Slice) -> None:
        """A slice was trained on."""
        if self._ledger:
            self._ledger.note(part)

    def flush(self) -> None:
        """Make the ledger durable, before a checkpoint is published."""
        if self._ledger:
            self._ledger.flush()

    def close(self) -> None:
        """Close files and stop copying."""
        if self._ledger:
            self._ledger.close()
        if self._stager:
            self._stager.close()
        self._ledger = self._stager = None

    def grid_rows(self, wanted: int) -> list[int]:
        """The first `wanted` rows that image grids can show: where `data.size` is a bucket, rows of that bucket, since
        latents that were cached at another size do not fit it."""
        rows, sizes, size = len(self._sampled), self.job.data.bucket_sizes, self.job.data.height_width[::-1]
        if size not in sizes:
            return list(range(min(wanted, rows)))
        return first_of_bucket(self._sampled, sizes.index(size), sizes, wanted)

    def sampled(self, task: Task, wanted: list[int], places: list[int]) -> Tensors:
        """Tensors of some rows of `samples` outside of training, at `data.size`; `places`: theirs in the grid."""
        batch = Batch(0, np.array(wanted), np.array(places), np.ones(len(wanted), np.float32))
        size = self.job.data.height_width
        return task.collate(batch, [self.samples.row(row, size).arrays for row in wanted])

    @property
    def tails(self) -> str:
        """What becomes of the rows at the end of an epoch, in words."""
        order = self.order
        said = f"{order.left_over} {'rows dropped' if order.tail == 'drop' else 'places filled up at weight 0'}"
        never = [
            "×".join(map(str, size))
            for size, rows in zip(self.job.data.bucket_sizes, order.rows_by_bucket.tolist())
            if order.tail == "drop" and 0 < rows < order.global_batch
        ]
        if never:
            said += f" (never seen: buckets {', '.join(never)}, smaller than a global batch)"
        return said

    def _open_ledger(self, first: int) -> Ledger:
        part = zero.from_first(next_part(self.run) if self.world.rank == 0 else None)
        head = {
            "first_step": first,
            "ranks": self.world.size,
            "steps": self.job.steps,
            "dataset": str(self.data.path),
            "shards": self._opened.shards,
            "fields": list(self.view.fields),
            "split": self.view.split,
            "saved_view": self.job.data.view,
            "order": self.order.facts,
        }
        return Ledger(self.run, part, self.world.rank, head)

    def _stage_ahead(self, step: int) -> None:
        """Have the shards copied that the present window and those after it need, when a new window begins."""
        if self._stager is None or (window := self.order.window_at(step)) == self._window:
            return
        self._window = window
        names = {field.partition(".")[0] for field in self.view.fields} | {"base"}
        columns = [(self.data.column(name).folder, self.data.shard_entries(name)) for name in sorted(names)]
        self._stager.want(files_of(columns, self.order.shards_ahead(step, WINDOWS_AHEAD)))


def open_as_begun(dataset: Path, run: Path, world: World) -> Dataset:
    """The dataset with the shards that it had when the run began: rows that are added meanwhile change no order.

    (A saved view pins its rows by itself.)
    """
    note = run / "data.json"
    try:
        return Dataset.as_of(dataset, read_json(note)["shards"])
    except FileNotFoundError:
        opened = Dataset.open(dataset)
        if world.rank == 0:
            write_json(note, {"dataset": opened.name, "shards": opened.shards})
        return opened


def make_order(view: View, job: TrainJob, world: World) -> Order:
    """The order of a training, the same on every rank. UserError naming what differs when ranks see other data."""
    buckets = bucketed(view, job.data.bucket_sizes) if job.data.bucket_sizes else None
    if buckets:
        # Counting may open every shard: one rank does it, the others find what it has stored.
        _on_first(world, lambda: buckets.bucket_counts)
    data = job.data
    order = Order(view.digest, view.shard_sizes, job.seed, job.global_batch, data.window, data.tail, buckets)
    for rank, facts in enumerate(zero.gather(order.facts)):
        different = [name for name in facts if facts[name] != order.facts[name]]
        if different:
            raise UserError(
                f"{view.dataset.path}: rank {rank} sees other data than rank {world.rank} ({', '.join(different)}); "
                "the dataset was changed a moment ago, or a node has an old copy of it. Try again"
            )
    return order


class ByRole:
    """A view of a dataset whose fields have the names that the task knows them by."""

    def __init__(self, view: View, fields: Mapping[str, str]) -> None:
        self._view, self._fields = view, fields

    def __len__(self) -> int:
        return len(self._view)

    def key(self, i: int) -> str:
        return self._view.key(i)

    def where(self, i: int) -> str:
        return self._view.where(i)

    def read(self, i: int) -> dict[str, bytes | None]:
        row = self._view.read(i)
        return {role: row[field] for role, field in self._fields.items()}


def _on_first(world: World, work: Callable[[], NDArray[Any]]) -> None:
    """Do something on rank 0 while the others wait; its UserError is raised on every rank."""
    fault = None
    if world.rank == 0:
        try:
            work()
        except UserError as error:
            fault = str(error)
    if (fault := zero.from_first(fault)) is not None:
        raise UserError(fault)
