"""Reads the samples of a training: torch's DataLoader fetches, `Order` alone decides what.

A task gives two functions. `decode` turns the fields of one row into arrays, the same every time, so its results may be
cached. `collate` makes the tensors of a rank's slice at a step and draws what is random, keyed by step and row.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from semiocity.data.buffers import Arrays, Decoded, Packed, Pool, Room, SharedPool, Unpacker, empty, own_room, stack
from semiocity.data.order import Batch, Order
from semiocity.errors import UserError

__all__ = [
    "Arrays",
    "Collate",
    "Decode",
    "Room",
    "Rows",
    "Size",
    "Slice",
    "empty",
    "own_room",
    "slices",
    "stack",
    "to_bytes",
    "to_unit",
]

Size = tuple[int, int]
"""Height and width in pixels."""


class View(Protocol):
    """What the loader needs of a view of a dataset (see `semiocity.data.columns`)."""

    def __len__(self) -> int: ...
    def key(self, i: int) -> str: ...
    def where(self, i: int) -> str: ...
    def read(self, i: int) -> Mapping[str, bytes | None]: ...


Decode = Callable[[Mapping[str, bytes | None], Size, Room], Arrays]
"""(fields of one row by name, height and width to bring it to, room for its arrays) -> arrays. A ValueError or OSError
means that the row is damaged, and is reported with its key and shard."""

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
        self._space = cache_mb * 2**20
        self._cache: dict[tuple[int, Size], Row] = {}

    def row(self, number: int, size: Size, room: Room = own_room) -> Row:
        """A row by number, brought to a size; its arrays may lie in `room`. UserError naming its key and shard when it
        cannot be read or decoded."""
        if (found := self._cache.get((number, size))) is not None:
            return found
        key = self.view.key(number)
        try:
            # What is kept must not lie where the next slice will.
            row = Row(key, self._decode(self.view.read(number), size, own_room if self._space else room))
        except UserError as error:
            raise UserError(f"row {key} of {self.view.where(number)}: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(
                f"row {key} of {self.view.where(number)} cannot be decoded: {error}; `semiocity verify` names all "
                "damaged rows"
            ) from error
        # What is in stays in: with a random order, replacing would only cost time.
        if self._space and (bytes_ := sum(array.nbytes for array in row.arrays.values())) <= self._space:
            self._space -= bytes_
            self._cache[number, size] = row
        return row


class _Sent(NamedTuple):
    """A slice on its way from a worker, its tensors apart. Pinned by DataLoader's own thread where that is wanted."""

    loader: int
    made: Slice
    packed: Packed

    def pin_memory(self) -> Slice:
        return self.unpack(pin=True)

    def unpack(self, pin: bool = False) -> Slice:
        self.made.tensors = _UNPACKERS[self.loader].unpack(self.packed, pin)
        return self.made


_UNPACKERS: dict[int, Unpacker] = {}
"""By loader. The thread that pins is handed nothing but what the workers sent, so what it needs is found here."""
_NUMBERS = itertools.count()


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
        self.number = next(_NUMBERS)
        self.memory: Pool | SharedPool = Pool()

    def start_worker(self, number: int) -> None:
        """In a worker, before anything else."""
        # Ctrl-C reaches every process of a terminal; the training stops its workers itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.memory = SharedPool(number)

    def __getitem__(self, step: int) -> Slice | _Sent | UserError:
        try:
            batch = self.order.slice_of(step, self.rank, self.world)
            size, names = self.sizes[batch.bucket], []
            piece = self.memory.piece()
            decoded = Decoded(piece, len(batch.rows))
            for number in batch.rows.tolist():
                row = self.rows.row(number, size, decoded.room)
                decoded.append(row.arrays)
                names.append(row.key)
            tensors = self.collate(batch, decoded)
        except UserError as error:
            return error
        made = Slice(step, batch.rows, batch.weights, batch.bucket, {}, names if self.with_keys else None)
        if isinstance(self.memory, SharedPool):
            return _Sent(self.number, made, self.memory.pack(piece, tensors))
        self.memory.done(piece)
        made.tensors = tensors
        return made


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
    source = _Steps(rows, order, rank, world, collate, sizes, with_keys)
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        # Nothing random is left to workers; what DataLoader draws for them must not come from the global generator.
        generator=torch.Generator().manual_seed(order.seed % 2**63),
    )
    _UNPACKERS[source.number] = Unpacker()
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            part = item.unpack() if isinstance(item, _Sent) else item
            part.view = rows.view
            yield part
    finally:
        del _UNPACKERS[source.number]


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] in 0 … 255 -> fp32 [B, 3, H, W] in [-1, 1], contiguous."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_unit`: [B, 3, H, W] in [-1, 1] (clamped) -> uint8 [B, H, W, 3]."""
    return images.float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _start_worker(number: int) -> None:
    info = get_worker_info()
    assert info is not None
    steps = info.dataset
    assert isinstance(steps, _Steps)
    steps.start_worker(number)


def _as_it_is(item: Any) -> Any:
    return item  # DataLoader's own conversion takes tuples and arrays apart
