"""Writes a rank's part of a checkpoint beside the training: copies in host memory first, then files.

What the optimizer moves changes only when it moves it, so the copies are made while the next forward and backward pass
runs; the loop waits for them (`wait_copied`) before the optimizer's next step, which it seldom has to.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semiocity.train import tensor_file
from semiocity.train.shards import Part

Seals = dict[str, dict[str, Any]]
"""File name -> its bytes and sha256."""
PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for every context, not only that of the thread that asks."""


class Writer:
    """One thread of a rank that does what it is given, one thing after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._copied = threading.Event()
        self._copied.set()
        self._cancelled = threading.Event()
        self._kept: dict[tuple[str, str], Tensor] = {}
        """Host memory by file and tensor, kept for the next time: new memory costs more than copying."""

    def write(self, parts: list[Part], folder: Path, *, copy: bool, before: Callable[[], None]) -> Future[Seals]:
        """Begin to write the files of `parts` into `folder`, after calling `before`.

        With `copy` the tensors may change again as soon as `wait_copied` has returned; without, not before the end.
        """
        ready: torch.cuda.Event | None = None
        if copy:
            self._copied.clear()
            # What a forward pass may change is copied at once; it is small.
            parts = [part._replace(tensors=self._copies(part)) if part.volatile else part for part in parts]
            if self.device.type == "cuda":
                ready = torch.cuda.Event()
                ready.record()

        def work() -> Seals:
            try:
                copies = self._copy(parts, ready) if copy else parts
            finally:
                self._copied.set()
            before()
            return {
                part.file: tensor_file.write(folder / part.file, part.tensors, part.metadata, self._cancelled)
                for part in copies
            }

        return self._pool.submit(work)

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Begin something else."""
        return self._pool.submit(work)

    def wait_copied(self) -> None:
        """Return once the tensors may change. What went wrong with copying is told by the future."""
        self._copied.wait()

    def missing_bytes(self, parts: list[Part]) -> int:
        """Host memory that copies of `parts` would take beyond what is kept."""
        return sum(
            tensor.nbytes
            for part in parts
            for name, tensor in part.tensors.items()
            if not _fits(self._kept.get((part.file, name)), tensor)
        )

    def close(self) -> None:
        """Give up what is being written, and end the thread."""
        self._cancelled.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()

    def _copy(self, parts: list[Part], ready: torch.cuda.Event | None) -> list[Part]:
        if ready is None:
            return [part if part.volatile else part._replace(tensors=self._copies(part)) for part in parts]
        stream = torch.cuda.Stream(self.device)  # beside the training's
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            copies = [part if part.volatile else part._replace(tensors=self._copies(part)) for part in parts]
        stream.synchronize()
        return copies

    @torch.no_grad()
    def _copies(self, part: Part) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in part.tensors.items():
            kept = self._kept.get((part.file, name))
            if kept is None or not _fits(kept, tensor):
                kept = self._kept[part.file, name] = _room(tensor)
            # Volatile parts are copied on the training's own stream, and must be there at once.
            copies[name] = kept.copy_(tensor, non_blocking=not part.volatile)
        return copies


def _fits(kept: Tensor | None, tensor: Tensor) -> bool:
    return kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype


def _room(tensor: Tensor) -> Tensor:
    """Host memory for a tensor; page-locked for one on a GPU, where the driver allows it, which copies fastest.

    Not by torch's own allocator: it rounds up to a power of two and never gives anything back.
    """
    room = torch.empty(tensor.shape, dtype=tensor.dtype)
    if tensor.device.type == "cuda" and room.nbytes:
        runtime: Any = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(room.data_ptr(), room.nbytes, PORTABLE)) == 0:
            weakref.finalize(room, runtime.cudaHostUnregister, room.data_ptr())
        else:
            # The next kernel of this thread would report the failure as its own.
            with suppress(RuntimeError):
                torch.zeros(1, device=tensor.device)
    return room
