"""What the benchmarks of shards share: pictures, contenders as processes of their own, alternating rounds, medians.

A contender is `python bench/WORKER.py NAME FOLDER`, which prints the seconds that it measured itself: importing does
not count. Peers that need an environment of their own run with the Python that $SEMIOCITY_PEERS names (`make peers`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
PEERS = os.environ.get("SEMIOCITY_PEERS")


def pictures(folder: Path, count: int, side: int = 512) -> int:
    """Write `count` JPEGs of about 95 KB with a json each, `00000.jpg`, `00000.json`; returns their bytes together."""
    import io

    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    total = 0
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(pixels + random.normal(0, 9, pixels.shape), 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(noisy).save(sink, "JPEG", quality=88, subsampling=2)
        meta = json.dumps({"id": f"street/{i:05d}", "split": "train", "width": side, "height": side}).encode()
        for extension, data in (("jpg", sink.getvalue()), ("json", meta)):
            (folder / f"{i:05d}.{extension}").write_bytes(data)
            total += len(data)
    return total


def contest(
    worker: str, names: Sequence[str], folder: Path, rounds: int, foreign: Sequence[str] = ()
) -> dict[str, float]:
    """Contender → median of the seconds over the rounds, which alternate between all of them.

    Those in `foreign` run in the peers' environment, and are left out where there is none.
    """
    running = [name for name in names if name not in foreign or PEERS]
    for name in sorted(set(names) - set(running)):
        print(f"{name}: left out; SEMIOCITY_PEERS names no environment with it (`make peers`)")
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name in running:
            seconds[name].append(measure(worker, name, folder, PEERS if name in foreign else None))
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(worker: str, name: str, folder: Path, python: str | None = None) -> float:
    """Seconds that one contender needs."""
    command = [python or sys.executable, str(HERE / worker), name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def table(title: str, medians: Mapping[str, float], count: int, unit: str) -> None:
    """Print rates, best first."""
    print(title)
    for name, value in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {name:<34} {count / value:>10,.0f} {unit}")


def verdict(claim: str, ours: float, peer: float, goal: float) -> None:
    """The last line of a script: one JSON object. `ours` and `peer` are rates; their ratio is to reach `goal`."""
    ratio = ours / peer
    facts = {
        "claim": claim,
        "ours": round(ours),
        "peer": round(peer),
        "ratio": round(ratio, 2),
        "goal": f"ratio >= {goal}",
        "met": ratio >= goal,
    }
    print(json.dumps(facts))
