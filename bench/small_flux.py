"""For the benchmarks of the training loop: a small random Flux, a captioned dataset with cached columns, and this
process as the one rank that trains on it."""

from __future__ import annotations

import importlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from semiocity.config import check
from semiocity.launch.world import World
from semiocity.train import zero
from semiocity.train.options import TrainJob

TESTS = Path(__file__).resolve().parents[1] / "tests"
ROWS = 48


def prepare(folder: Path, heads: int) -> tuple[Path, Path]:
    """A Flux pipeline of width 16·`heads` with three blocks, and a dataset of 48 pictures of 32² with its columns
    `latent` and `text`. As the tests have them."""
    sys.path[:0] = [str(TESTS), str(TESTS / "train")]
    models, data = importlib.import_module("tiny_flux"), importlib.import_module("flux_data")
    model: Path = models.save_flux(folder / "model", heads=heads)
    dataset: Path = data.cache(data.captioned_city(folder / "city", ROWS), model)
    return model, dataset


def job(model: Path, dataset: Path, own: dict[str, Any], **settings: Any) -> TrainJob:
    """A full fine-tune from the cached columns. `own`: the [model] table."""
    common = {
        "task": "flux-full",
        "dataset": str(dataset),
        "global_batch": 8,
        "sample_every": 0,
        "log_every": 10,
        "optimizer": {"lr": 1e-4},
        "zero": {"stage": 2, "precision": "fp32"},
        "data": {"size": 32, "workers": 1},
        "model": {"pretrained": str(model), "text_tokens": 16, "vae_dtype": "float32", **own},
    }
    return check({**common, **settings}, TrainJob, "bench")


@contextmanager
def lone_rank() -> Iterator[tuple[World, torch.device]]:
    """One gloo rank, computing on one thread: reading ahead and writing have the other core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = World(0, 1, 0, 1, "127.0.0.1", port, "bench", 0)
    with zero.session(world, 1) as device:
        zero.start_deepspeed()
        yield world, device


class Clock:
    """Asked by the loop once a step whether to stop, it notes the time; it says yes after `steps`."""

    def __init__(self, steps: int = sys.maxsize) -> None:
        self.steps = steps
        self.times: list[float] = []

    def __call__(self) -> bool:
        self.times.append(time.perf_counter())
        return len(self.times) >= self.steps

    @property
    def intervals(self) -> list[float]:
        """Seconds from the beginning of each step to that of the next."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:])]
