"""What the benchmarks of shards share: pictures, contenders as processes of their own, alternating rounds, medians.

A contender is `python bench/WORKER.py NAME FOLDER`, which stays for all rounds and says what each took (`serve`), so
that importing neither counts nor takes time. Peers that need an environment of their own run with the Python that
$SEMIOCITY_PEERS names (`make peers`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = os.environ.get("SEMIOCITY_PEERS")


def pictures(folder: Path, count: int, side: int = 512) -> int:
    """Write `count` JPEGs of about 95 KB with a json each, `00000.jpg`, `00000.json`; returns their bytes together."""
    import io

    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    grain = random.normal(0, 9, (2 * side, 2 * side, 3))  # made once: each picture has another piece of it
    total = 0
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        y, x = random.integers(0, side, 2)
        noisy = np.clip(pixels + grain[y : y + side, x : x + side], 0, 255).astype(np.uint8)
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
    """Contender → median of the seconds over the rounds, which alternate between all of them and are printed.

    Those in `foreign` run in the peers' environment, and are left out where there is none.
    """
    running = [name for name in names if name not in foreign or PEERS]
    for name in sorted(set(names) - set(running)):
        print(f"{name}: left out; SEMIOCITY_PEERS names no environment with it (`make peers`)", flush=True)
    contenders = [Contender(worker, name, folder, PEERS if name in foreign else None) for name in running]
    seconds: dict[str, list[float]] = {name: [] for name in running}
    try:
        for number in range(1, rounds + 1):
            began = time.perf_counter()
            for contender in contenders:
                seconds[contender.name].append(contender.measure())
            print(f"round {number} of {rounds}: {time.perf_counter() - began:.1f} s", flush=True)
    finally:
        for contender in contenders:
            contender.close()
    return {name: statistics.median(values) for name, values in seconds.items()}


class Contender:
    """A process that measures one of a worker's contenders whenever it is asked to."""

    def __init__(self, worker: str, name: str, folder: Path, python: str | None = None) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        self._process = subprocess.Popen(
            [python or sys.executable, str(HERE / worker), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=HERE.parent,
        )

    def measure(self) -> float:
        """Seconds of one round."""
        assert self._process.stdin and self._process.stdout
        try:
            print("go", file=self._process.stdin, flush=True)
            return float(self._process.stdout.readline())
        except (OSError, ValueError):
            self._process.kill()  # it may be alive, having said something else
            self._process.wait()
            self._errors.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self._errors.read().decode()[-3000:]}") from None

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def serve(prepare: Callable[[], object], measure: Callable[[], float]) -> None:
    """A contender's side: whenever asked to, say what `measure` measured, in seconds. Libraries' own words go to
    stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    for _ in sys.stdin:
        print(measure(), file=answers, flush=True)


def table(title: str, medians: Mapping[str, float], count: int, unit: str) -> None:
    """Print rates, best first."""
    print(title)
    for name, value in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {name:<34} {count / value:>10,.0f} {unit}")


@dataclass(frozen=True)
class Goal:
    """`ours` / `peer`, two rates, is to reach `wanted`."""

    name: str
    ours: float
    peer: float
    wanted: float

    def facts(self) -> dict[str, Any]:
        ratio = self.ours / self.peer
        return {
            "claim": self.name,
            "ours": round(self.ours),
            "peer": round(self.peer),
            "ratio": round(ratio, 2),
            "goal": f"ratio >= {self.wanted}",
            "met": ratio >= self.wanted,
        }


def verdict(goals: Sequence[Goal], medians: Mapping[str, float], count: int, unit: str) -> None:
    """The last line of a script: one JSON object with its goals, and what every contender reached."""
    for goal in goals:
        print(f"{goal.name}: {goal.ours / goal.peer:.2f} (goal {goal.wanted})")
    figures = {name: round(count / seconds) for name, seconds in sorted(medians.items(), key=lambda item: item[1])}
    print(json.dumps({"goals": [goal.facts() for goal in goals], "figures": figures, "unit": unit}))
