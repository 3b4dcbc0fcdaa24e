"""Reads the samples of a training: torch's DataLoader fetches, `Order` alone decides what.

A task gives two functions. `decode` turns the fields of one row into arrays, the same every time, so its results may be
cached. `collate` makes the tensors of a rank's slice at a step and draws what is random, keyed by step and row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from semiocity.data.order import Batch, Order
from semiocity.errors import UserError

Arrays = dict[str, NDArray[Any]]


class View(Protocol):
    """What the loader needs of a view of a dataset (see `semiocity.data.columns`)."""

    def __len__(self) -> int: ...
    def key(self, i: int) -> str: ...
    def read(self, i: int) -> Mapping[str, bytes | None]: ...


Decode = Callable[[Mapping[str, bytes | None]], Arrays]
"""Fields of one row by name -> arrays. A ValueError or OSError means that the row is damaged, and is reported with its
key."""

Collate = Callable[[Batch, Sequence[Arrays]], dict[str, torch.Tensor]]
"""(a rank's slice, its decoded rows) -> tensors whose first dimension is the slice's length."""


@dataclass
class Slice:
    """What one rank trains on at one step."""

    step: int
    keys: list[str]
    tensors: dict[str, torch.Tensor]
    """Whatever the task's `collate` made, first dimension b."""

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Slice:
        return Slice(self.step, self.keys, {name: tensor.pin_memory() for name, tensor in self.tensors.items()})


class Row(NamedTuple):
    """A decoded row."""

    key: str
    arrays: Arrays


class Rows:
    """Decoded rows of a view. Up to `cache_mb` MB of arrays are kept; rows beyond that are decoded every time."""

    def __init__(self, view: View, decode: Decode, cache_mb: int = 0) -> None:
        self._view, self._decode = view, decode
        self._room = cache_mb * 2**20
        self._cache: dict[int, Row] = {}

    def __getitem__(self, number: int) -> Row:
        """A row by number. UserError naming its key when it cannot be read or decoded."""
        if number in self._cache:
            return self._cache[number]
        key = self._view.key(number)
        try:
            row = Row(key, self._decode(self._view.read(number)))
        except UserError as error:
            raise UserError(f"row {key}: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(
                f"row {key}: cannot be decoded: {error}; `semiocity verify` names all damaged rows"
            ) from error
        size = sum(array.nbytes for array in row.arrays.values())
        # What is in stays in: with a random order, replacing would only cost time.
        if size <= self._room:
            self._room -= size
            self._cache[number] = row
        return row


class _Steps(Dataset[Any]):
    """A rank's slice by step number. Errors come back as values: DataLoader would wrap them in a worker's traceback."""

    def __init__(self, rows: Rows, order: Order, rank: int, world: int, collate: Collate) -> None:
        self.rows, self.order, self.rank, self.world, self.collate = rows, order, rank, world, collate

    def __getitem__(self, step: int) -> Slice | UserError:
        batch = self.order.slice_of(step, self.rank, self.world)
        try:
            found = [self.rows[int(number)] for number in batch.rows]
            tensors = self.collate(batch, [row.arrays for row in found])
        except UserError as error:
            return error
        return Slice(step, [row.key for row in found], tensors)


def slices(
    rows: Rows,
    order: Order,
    *,
    rank: int,
    world: int,
    steps: range,
    collate: Collate,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Slice]:
    """This rank's slices for `steps`, in order. `workers` 0 reads in this process; else they read ahead.

    Raises UserError naming the row when one cannot be read or decoded.
    """
    loader: DataLoader[Any] = DataLoader(
        _Steps(rows, order, rank, world, collate),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=2 if workers else None,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def stack(arrays: Sequence[Arrays], name: str) -> torch.Tensor:
    """The arrays called `name` of several rows as one tensor, first dimension len(arrays)."""
    return torch.from_numpy(np.stack([each[name] for each in arrays]))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] in 0 … 255 -> fp32 [B, 3, H, W] in [-1, 1], contiguous."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_unit`: [B, 3, H, W] in [-1, 1] (clamped) -> uint8 [B, H, W, 3]."""
    return images.float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
