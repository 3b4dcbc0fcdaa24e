"""Claim: decoded samples come at 0.9 of a bare decode loop in one process, and 0.8 of as many bare processes.

Peer: the same JPEGs (512²) from memory through simplejpeg and nothing else. Ours reads shards in the training's order,
checks every crc32, and collates batches. Medians of alternating runs; `python bench/loader.py [JPEG folder]`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from contest import Goal, verdict
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.decode import decode_rgb
from semiocity.data.lease import Owner
from semiocity.data.loader import Arrays, Room, Rows, slices, stack
from semiocity.data.manifest import merge
from semiocity.data.order import Batch, Order
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe

SIDE, BATCH = 512, 16


def pictures(folder: Path, source: Path | None, count: int) -> list[Path]:
    """`count` JPEGs of 512²: cut from photographs when there are some, else from smooth noise."""
    photographs = sorted(source.rglob("*.jpg")) if source else []
    chance = np.random.default_rng(0)
    paths = []
    for i in range(count):
        if photographs:
            picture = Image.open(photographs[i % len(photographs)]).convert("RGB").resize((SIDE, SIDE))
        else:
            rough = chance.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            picture = Image.fromarray(rough).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        paths.append(folder / f"{i:05d}.jpg")
        picture.save(paths[-1], quality=95)
    return paths


def packed(root: Path, dataset: Path, count: int) -> Dataset:
    source = {"kind": "folder", "root": str(root)}
    recipe = Recipe.model_validate({"name": "bench", "source": source, "shard_rows": max(count // 8, BATCH)})
    plan = make_plan(recipe, dataset)
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(dataset, "base", plan.revision)
    return Dataset.open(dataset)


def decode(row: Mapping[str, bytes | None], size: tuple[int, int], room: Room) -> Arrays:
    return {"image": decode_rgb(row["base.image"] or b"", out=room("image", (*size, 3), np.uint8))}


def collate(batch: Batch, decoded: Sequence[Arrays]) -> dict[str, torch.Tensor]:
    return {"image": stack(decoded, "image")}


def ours(dataset: Dataset, workers: int) -> float:
    """Samples a second. The first slices, while workers start, are not counted."""
    view = dataset.view(["base.image"])
    order = Order(view.digest, view.shard_sizes, 1, BATCH)
    skip = 4 * max(workers, 1)
    steps = range(skip + order.steps_per_epoch)
    made = slices(
        Rows(view, decode),
        order,
        rank=0,
        world=1,
        steps=steps,
        collate=collate,
        sizes=[(SIDE, SIDE)],
        workers=workers,
    )
    start = 0.0
    for part in made:
        if part.step == skip - 1:
            start = time.perf_counter()
    return (len(steps) - skip) * BATCH / (time.perf_counter() - start)


def bare(data: list[bytes]) -> float:
    """Samples a second of one process that only decodes."""
    start = time.perf_counter()
    for payload in data:
        simplejpeg.decode_jpeg(payload)
    return len(data) / (time.perf_counter() - start)


def bare_processes(data: list[bytes], count: int) -> float:
    """Samples a second of `count` processes that only decode."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(count + 1)

    def work() -> None:
        ready.wait()
        bare(data)
        ready.wait()

    processes = [context.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return count * len(data) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "in"
        root.mkdir()
        data = [path.read_bytes() for path in pictures(root, a.source, a.count)]
        dataset = packed(root, Path(folder) / "data", a.count)
        runs: dict[str, Callable[[], float]] = {
            "ours": lambda: ours(dataset, 0),
            "bare loop": lambda: bare(data),
            f"ours, {a.workers} workers": lambda: ours(dataset, a.workers),
            f"{a.workers} bare processes": lambda: bare_processes(data, a.workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(a.rounds):
            for name, run in runs.items():
                rates[name].append(run())
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in median.items():
        print(f"{name:<20} {value:8.0f} images/s")
    one, loop, many, processes = median.values()
    goals = [
        Goal("decoded batches, against a bare decode loop, images/s", one, loop, 0.9),
        Goal(f"decoded batches, against {a.workers} bare processes, images/s", many, processes, 0.8),
    ]
    verdict(goals, {name: 1 / value for name, value in median.items()}, 1, "images/s")


if __name__ == "__main__":
    main()
