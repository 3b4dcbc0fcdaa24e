"""Memory for slices, used again and again: on fresh memory the kernel spends a third of the time of decoding.

A piece is used again when nobody refers to it any more. Workers fill shared pieces and say which one they have filled;
the reading process marks those that it has let go of. So nothing is copied, no handle is passed twice, and a slice
stays as it is for as long as somebody has it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

ALIGN = 64
"""Bytes: where arrays begin."""
HEADER = ALIGN
"""Bytes at the beginning of a shared piece that are no arrays."""
POOL = 4
"""Pieces that a process keeps for itself."""

Arrays = dict[str, NDArray[Any]]
Room = Callable[[str, tuple[int, ...], DTypeLike], NDArray[Any]]
"""(name, shape, type) -> an array of any content to write a row's array of that name to, which spares a copy."""
Layout = list[tuple[str, torch.dtype, tuple[int, ...], int]]
"""Name, type, shape and first byte of each tensor."""


class Piece:
    """A stretch of memory that arrays are laid into, one after the other."""

    def __init__(self, memory: NDArray[np.uint8], used: int = 0) -> None:
        self.memory = memory
        self.used = used
        """Bytes that were asked for, whether there was room or not."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array with any content; elsewhere when there is no room."""
        start, size = -(-self.used // ALIGN) * ALIGN, math.prod(shape) * np.dtype(dtype).itemsize
        self.used = start + size
        if self.used > len(self.memory):
            return np.empty(shape, dtype)
        return self.memory[start : self.used].view(dtype).reshape(shape)

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """First byte of a contiguous tensor that lies in this piece; None when it lies elsewhere."""
        start = tensor.data_ptr() - self.memory.ctypes.data
        inside = tensor.is_contiguous() and 0 <= start <= len(self.memory) - tensor.nbytes
        return start if inside else None


class Decoded(Sequence[Arrays]):
    """The decoded rows of a slice. Arrays of one name and shape lie side by side, so that `stack` need not copy."""

    def __init__(self, piece: Piece, count: int) -> None:
        self.piece, self._count = piece, count
        self._whole: Arrays = {}
        self._given: Arrays = {}
        self._rows: list[Arrays] = []

    def room(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of any content for the next row, beside those of the rows before where shape and type agree."""
        if not self._rows and name not in self._whole:
            self._whole[name] = self.piece.empty((self._count, *shape), dtype)
        whole = self._whole.get(name)
        if whole is None or whole.shape[1:] != shape or whole.dtype != dtype:
            return np.empty(shape, dtype)
        self._given[name] = whole[len(self._rows), ...]  # an array also when it has no dimension
        return self._given[name]

    def append(self, arrays: Arrays) -> None:
        """The next row; what does not lie in its room yet is copied there."""
        row = {}
        for name, array in arrays.items():
            if self._given.get(name) is not array:
                place = self.room(name, array.shape, array.dtype)
                if self._given.get(name) is place:
                    place[...] = array
                    array = place
                else:
                    self._whole.pop(name, None)
            row[name] = array
        for name in self._whole.keys() - arrays.keys():
            del self._whole[name]
        self._given.clear()
        self._rows.append(row)

    def whole(self, name: str) -> NDArray[Any] | None:
        """All rows' arrays of one name, [b, …]; None when they do not lie side by side."""
        return self._whole.get(name) if len(self._rows) == self._count else None

    @overload
    def __getitem__(self, i: int) -> Arrays: ...
    @overload
    def __getitem__(self, i: slice) -> list[Arrays]: ...
    def __getitem__(self, i: int | slice) -> Arrays | list[Arrays]:
        return self._rows[i]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self._rows)


def stack(arrays: Sequence[Arrays], name: str) -> torch.Tensor:
    """The arrays called `name` of several rows as one tensor, first dimension len(arrays)."""
    whole = arrays.whole(name) if isinstance(arrays, Decoded) else None
    return torch.from_numpy(np.stack([each[name] for each in arrays]) if whole is None else whole)


def empty(arrays: Sequence[Arrays], shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array with any content, in the memory of the slice that `arrays` are the rows of."""
    return arrays.piece.empty(shape, dtype) if isinstance(arrays, Decoded) else np.empty(shape, dtype)


def own_room(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Room outside of any slice."""
    return np.empty(shape, dtype)


class Pool:
    """Pieces of one process."""

    def __init__(self) -> None:
        self._memories: list[NDArray[np.uint8]] = []
        self._size = 0

    def piece(self) -> Piece:
        """Memory that nothing refers to any more, or new memory as large as `done` has said."""
        for i in range(len(self._memories)):
            # The list and the argument refer to it; any array or tensor made of it does, too.
            if sys.getrefcount(self._memories[i]) == 2:
                if len(self._memories[i]) >= self._size:
                    return Piece(self._memories[i])
                del self._memories[i]
                break
        memory = np.empty(self._size, np.uint8)
        if len(self._memories) < POOL:
            self._memories.append(memory)
        return Piece(memory)

    def done(self, piece: Piece) -> None:
        """All was laid into the piece; pieces to come are large enough for as much."""
        self._size = max(self._size, piece.used)


class Packed(NamedTuple):
    """What a worker sends: where in which shared piece its tensors lie, and the piece itself when it is a new one."""

    worker: int
    number: int
    """Of the piece, among the worker's."""
    layout: Layout
    shared: torch.Tensor | None
    """[bytes] uint8"""


class SharedPool:
    """Pieces of a worker that another process reads. Byte 0 of each says whether somebody reads it: the worker sets it,
    `Unpacker` clears it."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._memories: list[torch.Tensor] = []
        self._size = 0
        self._turn = 0

    def piece(self) -> Piece:
        """Memory that nobody reads any more; `pack` makes new memory when there is none, or too little."""
        for number, memory in enumerate(self._memories):
            if memory[0] == 0:
                self._turn = number
                return Piece(memory.numpy(), HEADER)
        self._turn = len(self._memories)
        return Piece(np.empty(0, np.uint8), HEADER)

    def pack(self, piece: Piece, tensors: dict[str, torch.Tensor]) -> Packed:
        """Lay in what does not yet lie in the piece, into a larger one if it has to be."""
        starts = {name: piece.offset_of(tensor) for name, tensor in tensors.items()}
        end, layout = piece.used, []
        for name, tensor in tensors.items():
            start = starts[name]
            if start is None:
                start = -(-end // ALIGN) * ALIGN
                end = start + tensor.nbytes
            layout.append((name, tensor.dtype, tuple(tensor.shape), start))
        new = end > len(piece.memory)
        if new:
            memory = torch.empty(0, dtype=torch.uint8)
            self._size = max(self._size, end)
            memory.set_(torch.UntypedStorage._new_shared(self._size), 0, (self._size,))  # type: ignore[call-overload]
            self._memories[self._turn : self._turn + 1] = [memory]
        memory = self._memories[self._turn]
        for (name, dtype, shape, start), tensor in zip(layout, tensors.values(), strict=True):
            if new or starts[name] is None:
                stop = start + tensor.nbytes
                memory[start:stop].view(dtype).view(shape).copy_(tensor)
        memory[0] = 1
        return Packed(self._worker, self._turn, layout, memory if new else None)


class Unpacker:
    """The reading process: remembers the pieces that workers have sent, and lets go of those that nobody reads."""

    def __init__(self) -> None:
        self._memories: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._read: set[tuple[int, int]] = set()
        """Pieces that tensors refer to."""

    def unpack(self, packed: Packed, pin: bool) -> dict[str, torch.Tensor]:
        """The tensors: in the piece itself, which is kept for as long as one of them is; or copied to pinned memory."""
        for place in list(self._read):
            if sys.getrefcount(self._memories[place]) == 2:  # the table and the argument
                self._memories[place][0] = 0
                self._read.discard(place)
        place = packed.worker, packed.number
        if packed.shared is not None:
            self._memories[place] = packed.shared.numpy()
        self._read.add(place)
        tensors = {}
        for name, dtype, shape, start in packed.layout:
            stop = start + math.prod(shape) * dtype.itemsize
            tensor = torch.from_numpy(self._memories[place][start:stop]).view(dtype).view(shape)
            tensors[name] = tensor.pin_memory() if pin else tensor
        return tensors
