"""An engine without data, dataset or loop: what an optimizer and a ZeRO stage keep, and whether it comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semiocity.launch.world import World
from semiocity.train import shards, tensor_file, zero
from semiocity.train.ema import Ema
from semiocity.train.options import EmaOptions, OptimizerOptions, ZeroOptions
from semiocity.train.tasks.base import Loss, Phase
from semiocity.train.zero import Engine

WIDTH, INNER, ROWS, STEPS = 96, 101, 8, 5


class Layers(nn.Module):
    """Matrices in numbered layers, a first and a last one, and vectors; sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, INNER), nn.SiLU(), nn.Linear(INNER, WIDTH)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.out(self.norm(x))


class Squares:
    """A task of which an engine needs the loss alone: fixed inputs, fixed targets."""

    def loss(self, phase: str, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: int) -> Loss:
        x = batch["x"].to(next(modules["m"].parameters()).dtype)
        total = (modules["m"](x).float() - batch["y"]).square().mean()
        return Loss(total, {"loss": (total.detach(), 1.0)})


def build(
    optimizer: Mapping[str, Any], settings: Mapping[str, Any], accumulation: int, seed: int
) -> tuple[Engine, Ema]:
    """An engine over new weights, and their average."""
    torch.manual_seed(seed)
    model = Layers()
    modules = {"m": model}
    phase = Phase("p", modules, OptimizerOptions(**optimizer), ZeroOptions(**settings), group=_half)
    bundle = zero.Bundle(phase, Squares(), modules)  # type: ignore[arg-type]
    micro = ROWS // torch.distributed.get_world_size() // accumulation
    engine = Engine(phase, bundle, micro_batch=micro, accumulation=accumulation, device=torch.device("cpu"), alone=True)
    return engine, Ema(engine, EmaOptions(decay=0.9))


def _half(name: str) -> tuple[str, float]:
    """Two groups, with rates of their own."""
    return ("layers", 0.5) if ".layers." in name else ("rest", 1.0)


def walk(world: World, engine: Engine, average: Ema, steps: Sequence[int], accumulation: int) -> list[float]:
    """Steps on this rank's part of the rows; the mean losses."""
    losses = []
    for step in steps:
        random = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, 5, generator=random)
        y = 2 * x[:, :3] - 1
        each = ROWS // world.size
        mine = slice(world.rank * each, (world.rank + 1) * each)
        parts = zip(x[mine].chunk(accumulation), y[mine].chunk(accumulation))
        shown = []
        with engine.thawed():
            for i, (a, b) in enumerate(parts):
                values = engine.backward({"x": a, "y": b}, step, i == accumulation - 1)
                shown.append(float(values["loss"][0]))
            assert engine.step_with(engine.phase.optimizer.lr * (step + 1)).applied
        average.update()
        losses.append(zero.add_up(torch.tensor([sum(shown) / len(shown)]))[0] / world.size)
    return losses


def contents(engine: Engine, average: Ema) -> dict[str, Any]:
    """Copies of everything that must come back: masters, averages, states, and the whole weights."""
    found: dict[str, Any] = {}
    for i, master in enumerate(engine.masters()):
        used = torch.zeros(master.numel(), dtype=torch.bool)  # DeepSpeed leaves padding as it finds it
        for fragment in engine.fragments():
            if fragment.part == i:
                used[fragment.offset : fragment.offset + fragment.length] = True
        kept = {"master": master.detach(), "ema": average.shards[i], **engine.optimizer.state[master]}
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == master.shape:
                value = torch.where(used.view(value.shape), value, 0)
            found[f"{i}/{name}"] = value.clone() if isinstance(value, Tensor) else value
    for name, tensor in engine.full_weights(keep=True)["m"].items():
        found[f"weights/{name}"] = tensor
    return found


def come_back(
    world: World, optimizer: dict[str, Any], settings: dict[str, Any], accumulation: int, folder: Path, stops: list[int]
) -> dict[str, Any]:
    """Train undisturbed, and with an engine made anew after each of `stops`. Returns places that differ, the losses,
    and bytes a parameter of master weights and of state."""
    zero.start_deepspeed()
    engine, average = build(optimizer, settings, accumulation, 0)
    losses = walk(world, engine, average, range(STEPS), accumulation)
    expected = contents(engine, average)
    parameters = sum(p.numel() for p in Layers().parameters())
    sizes = {
        "master": sum(t.nbytes for n, t in expected.items() if n.endswith("/master")),
        "state": sum(
            t.nbytes
            for n, t in expected.items()
            if isinstance(t, Tensor) and not n.startswith("weights/") and n.rpartition("/")[2] not in ("master", "ema")
        ),
    }
    kept = sum(m.numel() for m in engine.masters())
    engine.close()

    again, first = [], 0
    for number, stop in enumerate([*stops, STEPS]):
        engine, average = build(optimizer, settings, accumulation, number)
        if number:
            shards.load(folder / str(first), world.rank, world.size, engine, average)
        again += walk(world, engine, average, range(first, stop), accumulation)
        if stop < STEPS:
            if world.rank == 0:
                (folder / str(stop)).mkdir(parents=True)
            zero.barrier()
            for part in shards.parts(world.rank, engine, average):
                tensor_file.write(folder / str(stop) / part.file, part.tensors, part.metadata)
            zero.barrier()
        else:
            found = contents(engine, average)
        engine.close()
        first = stop
    differing = sorted(expected.keys() ^ found.keys())
    for name in expected.keys() & found.keys():
        one, other = expected[name], found[name]
        if not (torch.equal(one, other) if isinstance(one, Tensor) else one == other):
            differing.append(name)
    if losses != again:
        differing.append(f"losses {losses} {again}")
    average_dtypes = sorted({str(t.dtype) for t in average.shards})
    return {
        "differing": differing,
        "losses": losses,
        "bytes": {name: size / kept for name, size in sizes.items()},
        "parameters": parameters,
        "average": average_dtypes,
        "weights": {name: t for name, t in expected.items() if name.startswith("weights/")},
    }
