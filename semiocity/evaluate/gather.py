"""What a run folder and a dataset tell about themselves, for the report. Every part may be missing. No torch here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.train.lines import read_metrics


@dataclass
class Training:
    """The curves of a training; lists of one length."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    """Step and validation loss."""
    progress: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    """Submissions of this training."""
    returns: int = 0
    """How often it was stopped and came back."""

    def last_loss(self, share: int = 50) -> float | None:
        """Mean of the last fiftieth of the losses."""
        tail = [value for value in self.loss[-max(len(self.loss) // share, 1) :] if math.isfinite(value)]
        return sum(tail) / len(tail) if tail else None


def training(run: Path) -> Training | None:
    """Curves from metrics.jsonl, attempts from the run folder; None when nothing was trained here."""
    found = Training(progress=optional(run / "progress.json") or {})
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        try:
            record = json.loads(line)
            values = [_float(record[name]) for name in ("loss", "lr")]
        except (json.JSONDecodeError, KeyError, ValueError):
            continue  # a line torn by a crash, or a training that does not tell these
        found.steps.append(int(record["step"]))
        found.loss.append(values[0])
        found.rate.append(values[1])
    found.validation = [(line["step"], line["loss"]) for line in read_metrics(run / "validation.jsonl")]
    for attempt in attempts(run):
        if attempt["kind"] == "train":
            found.attempts += 1
            found.returns += attempt["returns"]
    return found


def attempts(run: Path) -> list[dict[str, Any]]:
    """attempt.json of every submission, oldest first, with `number` and `returns` (how often it was requeued)."""
    found = []
    for path in sorted((run / "attempts").glob("*/attempt.json")):
        data = optional(path)
        if isinstance(data, dict) and "kind" in data:
            returns = len(list((path.parent / "requeue").glob("*")))
            found.append({**data, "number": path.parent.name, "returns": returns})
    return found


def newest_jobs(run: Path) -> dict[str, dict[str, Any]]:
    """Kind of work -> settings of its newest submission."""
    return {attempt["kind"]: attempt.get("job", {}) for attempt in attempts(run)}


def export(run: Path) -> dict[str, Any] | None:
    """config.json of the exported model, with `parameters`; None when there is no export."""
    meta = optional(run / "export" / "config.json")
    if not isinstance(meta, dict):
        return None
    return {**meta, "parameters": _parameters(run / "export" / "model.safetensors")}


def optional(path: Path) -> Any:
    """The JSON of a file, or None when it is missing or damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None


def _parameters(weights: Path) -> int | None:
    """Numbers in a safetensors file, from its header alone (8 bytes of length, then JSON)."""
    try:
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError):
        return None
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _float(value: Any) -> float:
    return float.fromhex(value) if isinstance(value, str) else float(value)
