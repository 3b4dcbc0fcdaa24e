"""Two real gloo ranks for tests: processes that stay, since importing DeepSpeed costs more than a tiny training."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from semiocity.config import check
from semiocity.errors import UserError
from semiocity.launch.world import World
from semiocity.train.options import TrainJob
from semiocity.train.tasks import TASKS, TaskEntry

SIZE = 2


def job_of(dataset: Path, **settings: Any) -> TrainJob:
    """A training job; nested tables as dicts."""
    register()
    return check({"dataset": str(dataset), **settings}, TrainJob, "test")


def register() -> None:
    """Make the tests' own task known to this process."""
    TASKS.setdefault("toy_gan", TaskEntry("toy_gan_options:ToyGanOptions", "toy_gan:ToyGan"))


class Ranks:
    """`call` runs a function on all ranks and gives their results; `UserError`s come back as themselves."""

    def __init__(self, size: int = SIZE) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        os.environ["OMP_NUM_THREADS"] = "1"
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, port), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of `function(world, *arguments)` by rank. Raises what the first failing rank raised."""
        for pipe in self.pipes:
            pipe.send((function.__module__, function.__qualname__, arguments))
        answers = [pipe.recv() for pipe in self.pipes]
        for kind, value in answers:
            if kind == "user error":
                raise UserError(value)
            if kind == "error":
                raise AssertionError(value)
        return [value for _, value in answers]

    def close(self) -> None:
        """End the ranks. They have nothing to save."""
        for process in self.processes:
            process.kill()


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    from semiocity.train import zero

    register()
    world = World(rank, size, rank, 1, "127.0.0.1", port, "test", 0)
    with zero.session(world, 1):
        while True:
            module, name, arguments = pipe.recv()
            try:
                pipe.send(("result", getattr(importlib.import_module(module), name)(world, *arguments)))
            except UserError as error:
                pipe.send(("user error", str(error)))
            except BaseException:
                pipe.send(("error", traceback.format_exc()))


# -- what the ranks do ------------------------------------------------------------------------------------------------


def train(world: World, settings: dict[str, Any], run: Path, dataset: Path, stop_rank: int, stop_after: int) -> bool:
    """Train; rank `stop_rank` is asked to stop in its step number `stop_after` (never when 0)."""
    from semiocity.train.loop import run as run_training

    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return world.rank == stop_rank and calls == stop_after

    return run_training(job_of(dataset, **settings), run, dataset, world, stop)


def settle_statistics(world: World) -> list[float]:
    """Running means of a norm that has seen other inputs on each rank, after a step."""
    import torch

    from semiocity.train.batch_statistics import BatchStatistics

    norm = torch.nn.BatchNorm1d(2)
    statistics = BatchStatistics({"norm": norm})
    statistics.remember()
    norm(torch.tensor([[10.0, 0.0], [10.0, 4.0]]) * world.rank)
    statistics.settle(applied=True)
    assert norm.running_mean is not None
    return norm.running_mean.tolist()
