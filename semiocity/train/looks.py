"""Looking at the averaged weights while they are trained: the validation loss and image grids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from semiocity.train import zero
from semiocity.train.ema import Ema
from semiocity.train.feed import Feed
from semiocity.train.metrics import Metrics
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import Modules, Task
from semiocity.train.validation import Validation
from semiocity.train.zero import Engine, World


@contextmanager
def averaged(engines: Sequence[Engine], averages: Mapping[str, Ema]) -> Iterator[None]:
    """Within, every averaged phase has its averaged weights, and all modules are in eval mode. Collective."""
    with ExitStack() as stack:
        for engine in engines:
            engine.train(False)
            stack.callback(engine.train, True)
        for average in averages.values():
            stack.enter_context(average.applied())
        yield


class Looks:
    """What is shown of the weights of a training. Collective: every rank makes it and calls its methods together."""

    def __init__(
        self,
        job: TrainJob,
        feed: Feed,
        task: Task,
        modules: Modules,
        engines: Sequence[Engine],
        averages: Mapping[str, Ema],
        world: World,
        device: torch.device,
    ) -> None:
        self.job, self.feed, self.task, self.modules = job, feed, task, modules
        self.engines, self.averages, self.world, self.device = engines, averages, world, device
        self._rows = feed.grid_rows(job.sample_images) if job.sample_every else []
        if self._rows and not task.grid_of_rows:
            self._rows = [self._rows[place % len(self._rows)] for place in range(job.sample_images)]
        self._validation: Validation | None = None
        if job.validate_every:
            self._validation = Validation(job, feed.validated, feed.held_out, feed.sizes, world)

    def due(self, done: int, metrics: Metrics | None) -> tuple[bool, bool]:
        """Whether a validation and a grid are due after `done` steps. What `metrics` (rank 0's) has already is not; a
        stop may have come before it, and then the next attempt catches up."""
        job, last = self.job, done == self.job.steps
        validate = self._validation is not None and (done % job.validate_every == 0 or last)
        grid = bool(self._rows) and done > 0 and (done % job.sample_every == 0 or last)
        if not (validate or grid):
            return False, False
        if metrics:
            validate &= not metrics.validated(done)
            grid &= not metrics.has_grid(done)
        found: tuple[bool, bool] = zero.from_first((validate, grid))
        return found

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """The validation loss, and what else the task shows of it."""
        assert self._validation is not None
        names = [engine.phase.name for engine in self.engines]
        with averaged(self.engines, self.averages):
            values = self._validation.losses(self.task, self.modules, names, self.device, prefix=len(names) > 1)
        values.setdefault("loss", values.get(f"{names[0]}/loss", math.nan))
        return values

    @torch.no_grad()
    def grid(self) -> Tensor:
        """An image grid, uint8 [height, width, 3]; every rank makes its part of the rows."""
        count = len(self._rows)
        each = math.ceil(count / self.world.size)
        places = [(self.world.rank * each + i) % count for i in range(each)]
        # Step 0 for every grid: the same noise each time, so that grids differ by the weights alone.
        batch = self.feed.sampled(self.task, [self._rows[place] for place in places], places)
        with averaged(self.engines, self.averages):
            pictures = self.task.sample(self.modules, {k: v.to(self.device) for k, v in batch.items()})
        parts = zero.gather(pictures.cpu().numpy())
        rows = torch.cat([torch.from_numpy(part) for part in parts])[:count]
        return rows.reshape(-1, *rows.shape[2:])
