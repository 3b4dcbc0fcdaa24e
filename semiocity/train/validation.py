"""A validation loss that can be compared: from step to step, between runs, and whatever the number of ranks.

Always the same held-out rows, spread over the split, each with noise of its own and with times spread evenly over the
process (stratified), none mirrored, no condition dropped. Noise is keyed by place and row alone, not by the job's seed:
two runs with other seeds see the same. Rows are cut into pieces of a fixed size, and a piece is computed whole on one
rank, so that every rank count adds up the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semiocity.data.aspects import buckets_of_rows
from semiocity.data.columns import View
from semiocity.data.loader import Rows
from semiocity.data.order import Batch
from semiocity.errors import UserError
from semiocity.train import zero
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import Modules, Task, Tensors
from semiocity.train.zero import World


class Piece(NamedTuple):
    """What is computed at once."""

    rows: list[int]
    places: list[int]
    """Of each row among all samples: its noise and its time."""
    bucket: int


class Validation:
    """The validation of a training on one rank. Collective: every rank makes it and calls `losses` together."""

    def __init__(self, job: TrainJob, rows: Rows, view: View, sizes: Sequence[tuple[int, int]], world: World) -> None:
        """`view`: that of `rows`; `sizes`: height and width of each bucket."""
        if not len(rows.view):
            raise UserError(f"validate_split: split {job.validate_split} has no rows that can be read")
        self.rows, self.sizes, self.world = rows, sizes, world
        self.samples = job.validate_samples
        chosen = choose(len(rows.view), self.samples)
        sizes_wide = job.data.bucket_sizes
        buckets = buckets_of_rows(view, chosen, sizes_wide) if sizes_wide else [0] * len(chosen)
        self.pieces = cut(chosen, buckets, job.validate_batch)

    def losses(
        self, task: Task, modules: Modules, phases: Sequence[str], device: torch.device, prefix: bool
    ) -> dict[str, float]:
        """Means over all samples: `loss` and what else the task shows, with `prefix` as PHASE/NAME."""
        table: dict[str, Tensor] = {}
        count = len(self.pieces)
        for turn in range(math.ceil(count / self.world.size)):
            number = turn * self.world.size + self.world.rank
            # A rank without a piece goes along: under ZeRO-3 the weights are gathered together.
            batch = {k: v.to(device) for k, v in self._batch(task, self.pieces[number % count]).items()}
            for phase in phases:
                for name, pair in task.validate(phase, modules, batch).items():
                    key = f"{phase}/{name}" if prefix else name
                    sums = table.setdefault(key, torch.zeros(count, 2, dtype=torch.float64, device=device))
                    if number < count:
                        sums[number] = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in map(_cpu, pair)])
        return self._means(table)

    def _means(self, table: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(table)
        # Every number has one rank that knows it, the others add zero: exact, in whatever order.
        flat = zero.add_up(torch.cat([table[name].flatten() for name in names])) if names else []
        means = {}
        for i, name in enumerate(names):
            pairs = flat[2 * i * len(self.pieces) : 2 * (i + 1) * len(self.pieces)]
            total, count = math.fsum(pairs[::2]) if _finite(pairs) else math.nan, sum(pairs[1::2])
            if count:
                means[name] = total / count
        return means

    def _batch(self, task: Task, piece: Piece) -> Tensors:
        decoded = [self.rows.row(row, self.sizes[piece.bucket]).arrays for row in piece.rows]
        places = np.array(piece.places)
        weights = np.ones(len(places), np.float32)
        batch = Batch(0, np.array(piece.rows), places, weights, piece.bucket)
        return task.collate_fixed(batch, decoded, (places + 0.5) / self.samples)


def choose(rows: int, samples: int) -> list[int]:
    """Rows of the samples: spread over all of them; again from the start where there are fewer rows than samples."""
    if samples <= rows:
        return [i * rows // samples for i in range(samples)]
    return [i % rows for i in range(samples)]


def cut(rows: Sequence[int], buckets: Sequence[int], size: int) -> list[Piece]:
    """Pieces of at most `size` samples, each of one bucket."""
    pieces = []
    for bucket in sorted(set(buckets)):
        places = [place for place, found in enumerate(buckets) if found == bucket]
        for first in range(0, len(places), size):
            part = places[first : first + size]
            pieces.append(Piece([rows[place] for place in part], part, bucket))
    return pieces


def _cpu(value: Tensor | float) -> Tensor | float:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))
