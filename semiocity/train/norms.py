"""Norms of the weights and of what a step adds to them, from the fp32 master weights of every rank.

Each element counts once, whatever the ZeRO stage: what a stage adds to fill up equal shares is left out. Only steps
that are shown pay for it: reading the weights once, and a copy of at most `SAMPLED` of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from semiocity.train.zero import Engine

SAMPLED = 1 << 25
"""Elements of a rank's share (128 MB in fp32) that are copied to see how far a step moves them. Of larger shares it is
every k-th element, and the norm an estimate, since Adam moves all elements about as far."""


class Squares(NamedTuple):
    """A rank's part of the squared norms, to be added up over the ranks."""

    parameters: float
    update: float


class Norms:
    """Made before an optimizer step, asked after it."""

    def __init__(self, engine: Engine, sampled: int = SAMPLED) -> None:
        self._engine = engine
        held = sum(fragment.length for fragment in engine.fragments())
        self._stride = max(1, -(-held // sampled))
        self._before = [piece[:: self._stride].float().clone() for piece in self._pieces()]

    def _pieces(self) -> Iterator[Tensor]:
        """This rank's real elements, one flat piece for each parameter it holds some of."""
        masters = [master.detach().reshape(-1) for master in self._engine.masters()]
        for fragment in self._engine.fragments():
            yield masters[fragment.part][fragment.offset : fragment.offset + fragment.length]

    @torch.no_grad()
    def squares(self, ranks: int) -> Squares:
        """Squared norms of the weights as they are now and of what the step added. Where every rank holds everything
        (stage 0), each gives its equal part."""
        pieces = list(self._pieces())
        if not pieces:
            return Squares(0.0, 0.0)
        parameters = torch.stack(torch._foreach_norm([piece.float() for piece in pieces]))
        moved = [piece[:: self._stride].float() - old for piece, old in zip(pieces, self._before)]
        # Every k-th element of a short piece stands for fewer than k.
        stands_for = torch.tensor([len(p) / len(m) for p, m in zip(pieces, moved)], dtype=torch.float64)
        update = torch.stack(torch._foreach_norm(moved)).double().cpu() ** 2 * stands_for
        share = ranks if self._engine.stage == 0 else 1
        return Squares(float((parameters.double() ** 2).sum()) / share, float(update.sum()) / share)
