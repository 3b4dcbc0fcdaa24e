"""Reads the samples of a training: torch's DataLoader fetches, `Order` alone decides what.

A task gives two functions. `decode` turns the fields of one row into arrays, the same every time, so its results may be
cached. `collate` makes the tensors of a rank's slice at a step and draws what is random, keyed by step and row.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from semiocity.data.order import Batch, Order
from semiocity.errors import UserError

Arrays = dict[str, NDArray[Any]]
Size = tuple[int, int]
"""Height and width in pixels."""
ALIGN = 64
"""Bytes: where tensors begin in a worker's buffer."""


class View(Protocol):
    """What the loader needs of a view of a dataset (see `semiocity.data.columns`)."""

    def __len__(self) -> int: ...
    def key(self, i: int) -> str: ...
    def where(self, i: int) -> str: ...
    def read(self, i: int) -> Mapping[str, bytes | None]: ...


Decode = Callable[[Mapping[str, bytes | None], Size], Arrays]
"""(fields of one row by name, height and width to bring it to) -> arrays. A ValueError or OSError means that the row is
damaged, and is reported with its key and shard."""

Collate = Callable[[Batch, Sequence[Arrays]], dict[str, torch.Tensor]]
"""(a rank's slice, its decoded rows) -> tensors whose first dimension is the slice's length."""


@dataclass
class Slice:
    """What one rank trains on at one step."""

    step: int
    rows: NDArray[np.int64]
    """[b] row numbers of the view."""
    weights: NDArray[np.float32]
    """[b] as in `Batch`."""
    bucket: int
    tensors: dict[str, torch.Tensor]
    """Whatever the task's `collate` made, first dimension b."""
    names: list[str] | None = None
    """Keys of the rows, where they were asked for."""
    view: View | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        """Keys of the rows; looked up now unless they came along."""
        if self.names is None:
            assert self.view is not None
            self.names = [self.view.key(int(row)) for row in self.rows]
        return self.names

    def pin_memory(self) -> Slice:
        self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return self


class Row(NamedTuple):
    """A decoded row."""

    key: str
    arrays: Arrays


class Rows:
    """Decoded rows of a view. Up to `cache_mb` MB of arrays are kept; rows beyond that are decoded every time."""

    def __init__(self, view: View, decode: Decode, cache_mb: int = 0) -> None:
        self.view, self._decode = view, decode
        self._room = cache_mb * 2**20
        self._cache: dict[tuple[int, Size], Row] = {}

    def row(self, number: int, size: Size) -> Row:
        """A row by number, brought to a size. UserError naming its key and shard when it cannot be read or decoded."""
        if (found := self._cache.get((number, size))) is not None:
            return found
        key = self.view.key(number)
        try:
            row = Row(key, self._decode(self.view.read(number), size))
        except UserError as error:
            raise UserError(f"row {key} of {self.view.where(number)}: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(
                f"row {key} of {self.view.where(number)} cannot be decoded: {error}; `semiocity verify` names all "
                "damaged rows"
            ) from error
        # What is in stays in: with a random order, replacing would only cost time.
        if self._room and (bytes_ := sum(array.nbytes for array in row.arrays.values())) <= self._room:
            self._room -= bytes_
            self._cache[number, size] = row
        return row


class _Packed(NamedTuple):
    """A slice on its way from a worker: all tensors in one piece of shared memory, so that one handle is passed."""

    made: Slice
    """Without its tensors."""
    buffer: torch.Tensor
    """[bytes] uint8"""
    layout: list[tuple[str, torch.dtype, tuple[int, ...], int]]
    """Name, type, shape and first byte of each tensor."""

    def unpack(self) -> Slice:
        for name, dtype, shape, start in self.layout:
            stop = start + math.prod(shape) * dtype.itemsize
            self.made.tensors[name] = self.buffer[start:stop].view(dtype).view(shape)
        return self.made

    def pin_memory(self) -> _Packed:
        return self._replace(buffer=self.buffer.pin_memory())


class _Steps(Dataset[Any]):
    """A rank's slice by step number. Errors come back as values: DataLoader would wrap them in a worker's traceback."""

    def __init__(
        self,
        rows: Rows,
        order: Order,
        rank: int,
        world: int,
        collate: Collate,
        sizes: Sequence[Size],
        with_keys: bool,
    ) -> None:
        self.rows, self.order, self.rank, self.world, self.collate = rows, order, rank, world, collate
        self.sizes, self.with_keys = sizes, with_keys

    def __getitem__(self, step: int) -> Slice | _Packed | UserError:
        try:
            batch = self.order.slice_of(step, self.rank, self.world)
            size = self.sizes[batch.bucket]
            found = [self.rows.row(int(number), size) for number in batch.rows]
            tensors = self.collate(batch, [row.arrays for row in found])
        except UserError as error:
            return error
        names = [row.key for row in found] if self.with_keys else None
        made = Slice(step, batch.rows, batch.weights, batch.bucket, tensors, names)
        return _pack(made) if get_worker_info() else made


def slices(
    rows: Rows,
    order: Order,
    *,
    rank: int,
    world: int,
    steps: range,
    collate: Collate,
    sizes: Sequence[Size],
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
    with_keys: bool = False,
) -> Iterator[Slice]:
    """This rank's slices for `steps`, in order.

    `sizes`: height and width for each bucket of the order, one when there are none. `workers` 0 reads in this process;
    else each of them reads up to `prefetch` slices ahead. `with_keys` brings the keys along, as the process that read
    the rows knows them. Raises UserError naming the row when one cannot be read or decoded.
    """
    loader: DataLoader[Any] = DataLoader(
        _Steps(rows, order, rank, world, collate, sizes, with_keys),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
        # Nothing random is left to workers; what DataLoader draws for them must not come from the global generator.
        generator=torch.Generator().manual_seed(order.seed % 2**63),
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        part: Slice = item.unpack() if isinstance(item, _Packed) else item
        part.view = rows.view
        yield part


def stack(arrays: Sequence[Arrays], name: str) -> torch.Tensor:
    """The arrays called `name` of several rows as one tensor, first dimension len(arrays)."""
    return torch.from_numpy(np.stack([each[name] for each in arrays]))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] in 0 … 255 -> fp32 [B, 3, H, W] in [-1, 1], contiguous."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_unit`: [B, 3, H, W] in [-1, 1] (clamped) -> uint8 [B, H, W, 3]."""
    return images.float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _pack(made: Slice) -> _Packed:
    layout, end = [], 0
    for name, tensor in made.tensors.items():
        start = -(-end // ALIGN) * ALIGN
        layout.append((name, tensor.dtype, tuple(tensor.shape), start))
        end = start + tensor.nbytes
    buffer = torch.empty(0, dtype=torch.uint8)
    buffer.set_(torch.UntypedStorage._new_shared(max(end, 1)), 0, (max(end, 1),))  # type: ignore[call-overload]
    for (_, dtype, shape, start), tensor in zip(layout, made.tensors.values(), strict=True):
        buffer[start : start + tensor.nbytes].view(dtype).view(shape).copy_(tensor)
    made.tensors = {}
    return _Packed(made, buffer, layout)


def _start_worker(_number: int) -> None:
    # Ctrl-C reaches every process of a terminal; the training stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
