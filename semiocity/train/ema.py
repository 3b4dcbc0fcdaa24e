"""Exponential moving average on the fp32 master shards: every rank averages what it owns, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from semiocity.train.options import EmaOptions
from semiocity.train.zero import Engine


def decay_at(options: EmaOptions, updates: int) -> float:
    """The decay of update number `updates`, from 0."""
    return min(options.decay, (1 + updates) / (10 + updates)) if options.warmup else options.decay


class Ema:
    """The average of one phase's weights. Begins as a copy of them."""

    def __init__(self, engine: Engine, options: EmaOptions) -> None:
        self.engine, self.options = engine, options
        self.updates = 0
        self.shards = [master.detach().clone() for master in engine.masters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present master weights in."""
        torch._foreach_lerp_(self.shards, self.engine.masters(), 1 - decay_at(self.options, self.updates))
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights; after, the trained ones again, bit by bit. Collective.

        Costs no memory: average and master weights change places.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for master, shard in zip(self.engine.masters(), self.shards, strict=True):
            held = master.detach().clone()
            master.copy_(shard)
            shard.copy_(held)
        self.engine.publish()
