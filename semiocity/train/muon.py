"""Muon under ZeRO: orthogonal steps for matrices whose elements lie on several ranks.

    B ← m·B + (1 - m)·G          the momentum, divided among the ranks as the weights are
    U = (1 - m)·G + m·B          Nesterov's look ahead
    W ← (1 - r·λ)·W - r·0.2·√max(rows, columns)·NS(U)

NS(U) has U's singular vectors and singular values near 1, by five steps of a quintic Newton-Schulz iteration (Jordan et
al. 2024, kellerjordan.github.io/posts/muon). The factor makes an element's step as large as AdamW's on average, so both
take one rate and one decay (Liu et al. 2025, arXiv 2502.16982).

A rank needs whole matrices for NS: the ranks' shares of U are gathered, one parameter group at a time, and each rank
computes the matrices that it holds elements of. So no gradient is larger on a rank than its share but for that moment,
and the state can be divided anew among any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def is_for_muon(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon moves this parameter: a matrix of a numbered layer. Embeddings, the first and last layers, vectors
    and filters are AdamW's."""
    return len(shape) == 2 and min(shape) > 1 and any(part.isdigit() for part in name.split("."))


class Piece(NamedTuple):
    """Elements [start, start + length) of a flattened matrix, at `offset` of a rank's share."""

    rank: int
    start: int
    length: int
    offset: int


class Matrix(NamedTuple):
    """A matrix that is partly in this rank's share."""

    shape: tuple[int, int]
    pieces: list[Piece]
    """All of it, over all ranks."""


class Muon(Optimizer):
    """Muon for groups with "matrices", AdamW for the others."""

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "matrices": False})
        self._layout: dict[Tensor, list[Matrix]] = {}

    def lay_out(
        self,
        shares: Sequence[Tensor],
        fragments: Sequence[Sequence[tuple[str, int, int, int, int]]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Tell where matrices lie in flat shares. `fragments`, by rank: (parameter, first element, length, share's
        number, offset in it)."""
        rank = dist.get_rank()
        for number, share in enumerate(shares):
            pieces: dict[str, list[Piece]] = {}
            for i, theirs in enumerate(fragments):
                for name, start, length, part, offset in theirs:
                    if part == number:
                        pieces.setdefault(name, []).append(Piece(i, start, length, offset))
            self._layout[share] = [
                Matrix((shapes[name][0], shapes[name][1]), found)
                for name, found in pieces.items()
                if len(shapes[name]) == 2 and any(piece.rank == rank for piece in found)
            ]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; collective for groups of matrices in flat shares."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    (self._turn if group["matrices"] else self._adamw)(p, p.grad, group)

    def _turn(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(buffer, group["momentum"])
        moved = orthogonal(ahead) * size_of(ahead.shape) if p.ndim == 2 else self._turn_shares(p, ahead)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(moved, alpha=-group["lr"])

    def _turn_shares(self, p: Tensor, ahead: Tensor) -> Tensor:
        rank, every = dist.get_rank(), [torch.empty_like(ahead) for _ in range(dist.get_world_size())]
        dist.all_gather(every, ahead)
        moved = torch.zeros_like(ahead)
        for shape, pieces in self._layout[p]:
            whole = torch.empty(math.prod(shape), dtype=ahead.dtype, device=ahead.device)
            for piece in pieces:
                whole[piece.start : piece.start + piece.length] = every[piece.rank][
                    piece.offset : piece.offset + piece.length
                ]
            turned = (orthogonal(whole.view(shape)) * size_of(shape)).flatten()
            for piece in pieces:
                if piece.rank == rank:
                    moved[piece.offset : piece.offset + piece.length] = turned[piece.start : piece.start + piece.length]
        return moved

    def _adamw(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        adamw(
            [p],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def size_of(shape: Sequence[int]) -> float:
    """The factor of a matrix's step that makes its elements as large as AdamW's: 0.2·√max(rows, columns)."""
    return 0.2 * math.sqrt(max(shape))


def orthogonal(matrix: Tensor) -> Tensor:
    """NS of a matrix [rows, columns], computed in bf16 and given back in its type: singular values from about 0.7 to
    1.2."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)
