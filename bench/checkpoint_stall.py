"""Claim: a checkpoint that is written beside the training holds the loop up for less than one step.

Peer: the same save while the training waits (`checkpoint_async = false`), as DeepSpeed's and diffusers' own saves are.
A small Flux whose state is about 200 MB, on one rank and one thread of two cores. What a save costs is by how much the
steps from it to the next one take longer than as many undisturbed ones: the copying, and what the writing takes from
those that follow.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from small_flux import Clock, job, lone_rank, prepare

from semiocity.train import loop

EVERY = 10
HEADS = 28


def stalls(intervals: list[float]) -> tuple[list[float], float]:
    """(seconds that each save cost, seconds of an undisturbed step). A save comes after every EVERY steps."""
    step = statistics.median(intervals[1:])
    first = EVERY - 1
    windows = [intervals[i : i + EVERY] for i in range(first, len(intervals) - EVERY + 1, EVERY)]
    return [sum(window) - EVERY * step for window in windows], step


def main(saves: int = 4, rounds: int = 2) -> None:
    found: dict[str, list[float]] = {"beside the training": [], "the training waits": []}
    with tempfile.TemporaryDirectory(prefix="stall-") as name, lone_rank() as (world, _):
        folder = Path(name)
        model, dataset = prepare(folder, HEADS)
        for number in range(1, rounds + 1):
            for kind, beside in (("beside the training", True), ("the training waits", False)):
                clock, run = Clock(), folder / f"{kind} {number}"
                own = {"export_original": False, "latents": "column", "texts": "column"}
                steps = EVERY * (saves + 1)
                settings = job(model, dataset, own, steps=steps, checkpoint_every=EVERY, checkpoint_async=beside)
                assert loop.run(settings, run, dataset, world, clock)
                cost, step = stalls(clock.intervals)
                found[kind] += [seconds / step for seconds in cost]
                size = sum(file.stat().st_size for file in next((run / "checkpoints").glob("step-*")).iterdir())
                print(
                    f"{kind}: {size / 1e6:.0f} MB, a step takes {step:.3f} s, saves cost "
                    f"{', '.join(f'{seconds:.3f}' for seconds in cost)} s",
                    flush=True,
                )
    ours, peer = (statistics.median(values) for values in found.values())
    print(f"a save costs {ours:.2f} steps beside the training, {peer:.2f} steps where the training waits")
    facts = {
        "claim": "a checkpoint holds the loop up for less than one step; steps that a save costs",
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "ratio": round(ours / peer, 2),
        "goal": "ours < 1 step",
        "met": ours < 1,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
