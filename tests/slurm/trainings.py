"""Trainings on the loopback cluster: how they are disturbed, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from lab import Cluster


def preempt(cluster: Cluster) -> None:
    """A short job of the partition that preempts, on every node."""
    subprocess.run(
        ["sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"],
        env={**os.environ, **cluster.environment}, check=True, capture_output=True,
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, leases and leftovers included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results(run: Path) -> dict[str, Any]:
    """What a finished training leaves, all of which must be the same after an interruption: digests of the exported
    files, of the last checkpoint's tensors (weights, fp32 masters, moments, averages), and every step's loss with all
    its bits."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    tensors = {name: value for name, value in digests(last).items() if name.endswith(".safetensors")}
    exported = digests(run / "export")
    assert tensors and exported, f"{last} and {run / 'export'} must hold something, or nothing would be compared"
    return {
        "export": exported,
        "checkpoint": {"step": last.name, **tensors},
        "steps": [line["step"] for line in lines],
        "losses": [line["loss"] for line in lines],
    }


def step(run: Path) -> int:
    """The last step that the training has told of."""
    progress = run / "progress.json"
    return json.loads(progress.read_text())["step"] if progress.exists() else 0


def starts(run: Path) -> list[int]:
    """First step of every time the training was started."""
    history = run / "history.jsonl"
    return [json.loads(line)["first_step"] for line in history.read_text().splitlines()] if history.exists() else []
