"""What ranks do in the tests of checkpoints that are written beside the training."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from train_ranks import job_of

from semiocity.launch.world import World
from semiocity.train import checkpoint, host_memory, loop, tensor_file


def train_on_a_small_machine(world: World, settings: dict[str, Any], run: Path, dataset: Path, free: int) -> list[bool]:
    """Train where so many bytes of memory are free. Whether copies were made, for each save that was begun."""
    copied: list[bool] = []
    write, available = checkpoint.Writer.write, host_memory.available_bytes

    def noted(self: Any, *args: Any, copy: bool, **kwargs: Any) -> Any:
        copied.append(copy)
        return write(self, *args, copy=copy, **kwargs)

    checkpoint.Writer.write = noted  # type: ignore[method-assign]
    host_memory.available_bytes = lambda: free
    try:
        assert loop.run(job_of(dataset, **settings), run, dataset, world, lambda: False)
    finally:
        checkpoint.Writer.write = write  # type: ignore[method-assign]
        host_memory.available_bytes = available
    return copied


def train_on_a_full_disk(world: World, settings: dict[str, Any], run: Path, dataset: Path, step: int) -> str:
    """Train until the disk of rank 1 is full, in the checkpoint of `step`. What is said then."""
    write = tensor_file.write

    def full(file: Path, *args: Any) -> Any:
        if world.rank == 1 and f"{step:08d}" in file.parent.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, *args)

    tensor_file.write = full  # type: ignore[assignment]
    try:
        loop.run(job_of(dataset, **settings), run, dataset, world, lambda: False)
    except checkpoint.UserError as error:
        return str(error)
    finally:
        tensor_file.write = write
    return "nothing"
