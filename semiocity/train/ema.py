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
        self.shards = [master.detach().to(torch.float32, copy=True) for master in engine.masters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present master weights in."""
        masters, share = self.engine.masters(), 1 - decay_at(self.options, self.updates)
        if all(master.dtype == torch.float32 for master in masters):
            torch._foreach_lerp_(self.shards, masters, share)
        else:  # one at a time, for the sake of memory
            for shard, master in zip(self.shards, masters, strict=True):
                shard.lerp_(master.float(), share)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights; after, the trained ones again, bit by bit. Collective.

        Costs no memory: average and master weights change places. Only bf16 masters are set aside, since they could not
        hold the average.
        """
        masters = self.engine.masters()
        aside = [master.detach().clone() for master in masters if master.dtype != torch.float32]
        self._exchange()
        try:
            yield
        finally:
            if aside:
                self._put_back(aside)
            else:
                self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for master, shard in zip(self.engine.masters(), self.shards, strict=True):
            if master.dtype == shard.dtype:
                held = master.detach().clone()
                master.copy_(shard)
                shard.copy_(held)
            else:
                master.copy_(shard)
        self.engine.publish()

    @torch.no_grad()
    def _put_back(self, aside: list[torch.Tensor]) -> None:
        for master, held in zip(self.engine.masters(), aside, strict=True):
            master.copy_(held)
        self.engine.publish()
