"""Files with a JSON line a step, which a run that goes on cuts back to where it goes on from. Standard library only.

metrics.jsonl      what each step gave; numbers as C99 hexadecimal, so that two runs can be compared bit by bit
validation.jsonl   the validation loss, likewise
speed.jsonl        what depends on the machine and the day: samples/s, TFLOP/s, memory
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from semiocity.files import write_atomic


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of such a file with numbers as floats; a torn last line is left out."""
    try:
        opened = file.open(encoding="ascii")
    except FileNotFoundError:
        return
    with opened:
        for line in opened:
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                return
            yield {key: float.fromhex(value) if isinstance(value, str) else value for key, value in values.items()}


class Lines:
    """Appends to such a file, after its lines of later steps than `step` were dropped: they will be done again."""

    def __init__(self, file: Path, step: int) -> None:
        self.steps: set[int] = set()
        """Steps that have a line."""
        self._cut_back(file, step)
        self._file = file.open("a", encoding="ascii")

    def _cut_back(self, file: Path, step: int) -> None:
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="ascii").splitlines():
            try:
                found = json.loads(line)["step"]
            except (json.JSONDecodeError, KeyError):
                break  # torn by a crash
            if found <= step:
                kept.append(line + "\n")
                self.steps.add(found)
        write_atomic(file, "".join(kept).encode())

    def write(self, step: int, values: Mapping[str, float], exact: bool = True) -> None:
        """Add a line; `exact` numbers are written as hexadecimal."""
        shown = {name: value.hex() if exact else float(f"{value:.12g}") for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **shown}) + "\n")
        self.steps.add(step)

    def flush(self) -> None:
        """Make it readable."""
        self._file.flush()

    def sync(self) -> None:
        """Make it durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()
