"""Claim: `semiocity --help` and `semiocity status` start within 0.3 s, on a login node's cold shell.

Peer: `accelerate --help`, the launcher that the field's training scripts are started with. Medians of alternating runs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
COMMANDS = {
    "semiocity --help": [str(BIN / "semiocity"), "--help"],
    "semiocity status": [str(BIN / "semiocity"), "status"],
    "accelerate --help": [str(BIN / "accelerate"), "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def main(rounds: int = 9) -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<20} {value:.3f} s")
    ours = max(median["semiocity --help"], median["semiocity status"])
    peer = median["accelerate --help"]
    print(
        json.dumps(
            {
                "claim": "semiocity --help and status start within 0.3 s",
                "ours": round(ours, 3),
                "peer": round(peer, 3),
                "ratio": round(ours / peer, 3),
                "goal": "ours <= 0.3 s",
                "met": ours <= 0.3,
            }
        )
    )


if __name__ == "__main__":
    main()
