"""What a training shows of itself, from rank 0: TensorBoard, metrics.jsonl, progress.json and lines in the log.

metrics.jsonl has a line a step with every number at full precision (C99 hexadecimal). A run that resumes cuts it back
to the step it resumes from, and TensorBoard's curves with it, so nothing is told twice.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semiocity.files import write_atomic, write_json

PROGRESS_EVERY_S = 2.0


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl with numbers as floats; a torn last line is left out."""
    if not file.exists():
        return
    for line in file.read_text(encoding="ascii").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            return
        yield {key: float.fromhex(value) if isinstance(value, str) else value for key, value in values.items()}


class Metrics:
    """Writes the metrics of a run that goes on after `step` steps."""

    def __init__(self, run: Path, *, step: int, steps: int, log_every: int, global_batch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.steps, self.log_every, self.global_batch = run, steps, log_every, global_batch
        self._cut_back(step)
        self._lines = (run / "metrics.jsonl").open("a", encoding="ascii")
        # Events of steps that are done again are hidden: purge_step names the first of them.
        self._board = SummaryWriter(str(run / "tb"), purge_step=step + 1, flush_secs=10)
        self._progress_at = self._logged_at = time.monotonic()
        self._logged_step = step
        self._waited_s = 0.0
        self._sums: dict[str, list[float]] = {}
        self.samples_per_s: float | None = None

    def _cut_back(self, step: int) -> None:
        """Drop the lines of later steps, which will be done again."""
        file = self.run / "metrics.jsonl"
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="ascii").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                break  # torn by a crash
        write_atomic(file, "".join(kept).encode())

    def step(self, step: int, values: Mapping[str, float], waited_s: float) -> None:
        """Take in the values of a finished step; `waited_s` is how long it waited for data."""
        record = {"step": step, **{name: value.hex() for name, value in values.items()}}
        self._lines.write(json.dumps(record) + "\n")
        self._waited_s += waited_s
        for name, value in values.items():
            self._sums.setdefault(name, []).append(value)
        now = time.monotonic()
        if step % self.log_every == 0 or step == self.steps:
            self._log(step, now)
        if now - self._progress_at >= PROGRESS_EVERY_S:
            self._progress_at = now
            self._lines.flush()
            self.progress(step, values["loss"])

    def _log(self, step: int, now: float) -> None:
        seconds = max(now - self._logged_at, 1e-9)
        self.samples_per_s = (step - self._logged_step) * self.global_batch / seconds
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        for name, mean in means.items():
            self._board.add_scalar(name, mean, step)
        self._board.add_scalar("speed/samples_per_s", self.samples_per_s, step)
        self._board.add_scalar("speed/data_wait_share", self._waited_s / seconds, step)
        self._board.add_scalar("memory/gb", memory_gb(), step)
        left = (self.steps - step) * self.global_batch / self.samples_per_s
        print(
            f"step {step}/{self.steps}  loss {means['loss']:.4f}  {self.samples_per_s:.1f} samples/s  "
            f"{self._waited_s / seconds:.0%} waiting for data  {spell(left)} left",
            flush=True,
        )
        self._logged_at, self._logged_step, self._waited_s = now, step, 0.0
        self._sums.clear()

    def progress(self, step: int, loss: float | None, state: str = "training") -> None:
        """Write progress.json, which `semiocity status` reads."""
        speed = self.samples_per_s
        left = (self.steps - step) * self.global_batch / speed if speed else None
        write_json(
            self.run / "progress.json",
            {
                "state": state,
                "step": step,
                "steps": self.steps,
                "loss": loss,
                "samples_per_s": round(speed, 2) if speed else None,
                "eta_s": round(left) if left is not None else None,
                "updated": round(time.time(), 1),
            },
        )

    def images(self, step: int, grid: Tensor) -> None:
        """Show an image grid, uint8 [height, width, 3], and keep it as grids/step-N.png."""
        from PIL import Image

        self._board.add_image("layout, real, sample", grid, step, dataformats="HWC")
        folder = self.run / "grids"
        folder.mkdir(exist_ok=True)
        Image.fromarray(grid.numpy()).save(folder / f"step-{step:08d}.png")
        # Sampling is no training: leave it out of the speed.
        self._logged_at, self._logged_step = time.monotonic(), step

    def flush(self) -> None:
        """Make what was written so far readable and durable; belongs before a checkpoint is published."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._board.flush()

    def close(self) -> None:
        """Flush and close everything."""
        self.flush()
        self._lines.close()
        self._board.close()


def memory_gb() -> float:
    """Most memory that rank 0 held: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def spell(seconds: float) -> str:
    """A duration as a person says it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
