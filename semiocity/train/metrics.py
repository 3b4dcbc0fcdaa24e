"""What a training shows of itself, from rank 0: curves, files with a line a step, progress.json and lines in the log.

Curves go to every *board*: TensorBoard, and Weights & Biases where the job asks for it. A run that resumes cuts files
and curves back to the step it resumes from, so nothing is told twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from semiocity.files import write_json
from semiocity.train.lines import Lines, read_metrics

__all__ = ["Board", "Metrics", "TensorBoard", "read_metrics", "spell"]

PROGRESS_EVERY_S = 2.0


class Board(Protocol):
    """Something that shows curves and pictures."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, grid: Tensor) -> None:
        """An image grid, uint8 [height, width, 3]."""

    def flush(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Events in RUN/tb."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of steps that are done again are hidden: purge_step names the first of them.
        self._writer = SummaryWriter(str(run / "tb"), purge_step=step + 1, flush_secs=10)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, grid: Tensor) -> None:
        self._writer.add_image(name, grid, step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Metrics:
    """Writes the metrics of a run that goes on after `step` steps."""

    def __init__(
        self, run: Path, *, step: int, steps: int, log_every: int, global_batch: int, boards: Sequence[Board] = ()
    ) -> None:
        """`boards`: those beside TensorBoard."""
        self.run, self.steps, self.log_every, self.global_batch = run, steps, log_every, global_batch
        self._steps = Lines(run / "metrics.jsonl", step)
        self._validations = Lines(run / "validation.jsonl", step)
        self._speeds = Lines(run / "speed.jsonl", step)
        self._boards: list[Board] = [TensorBoard(run, step), *boards]
        self._drop_grids_after(step)
        self._progress_at = self._logged_at = time.monotonic()
        self._logged_step = step
        self._sums: dict[str, list[float]] = {}
        self._speed: dict[str, float] = {}
        self.left_s: float | None = None

    def is_due(self, step: int) -> bool:
        """Whether curves and log get a point at this step."""
        return step % self.log_every == 0 or step == self.steps

    def step(self, step: int, values: Mapping[str, float], speed: Mapping[str, float] | None = None) -> None:
        """Take in the values of a finished step, and those of the speed when a point is due."""
        self._steps.write(step, values)
        for name, value in values.items():
            self._sums.setdefault(name, []).append(value)
        if speed is not None:
            self._log(step, speed)
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_EVERY_S:
            self._progress_at = now
            self._steps.flush()
            self.progress(step, values["loss"])

    def _log(self, step: int, speed: Mapping[str, float]) -> None:
        now = time.monotonic()
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._show(step, {**means, **speed})
        self._speeds.write(step, {"time": time.time(), **speed}, exact=False)
        self._speeds.flush()
        # All that the run does counts for the time that is left.
        self.left_s = (self.steps - step) * (now - self._logged_at) / max(step - self._logged_step, 1)
        self._logged_at, self._logged_step = now, step
        self._speed = dict(speed)
        self._sums.clear()
        share = f"MFU {speed['speed/mfu']:.0%}  " if "speed/mfu" in speed else ""
        print(
            f"step {step}/{self.steps}  loss {means['loss']:.4f}  {speed['speed/samples_per_s']:.1f} samples/s  {share}"
            f"{speed['speed/data_wait_share']:.0%} waiting for data  {spell(self.left_s)} left",
            flush=True,
        )

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        for board in self._boards:
            board.scalars(step, values)

    def progress(self, step: int, loss: float | None, state: str = "training") -> None:
        """Write progress.json, which `semiocity status` reads."""
        speed = self._speed.get("speed/samples_per_s")
        write_json(
            self.run / "progress.json",
            {
                "state": state,
                "step": step,
                "steps": self.steps,
                "loss": loss,
                "samples_per_s": round(speed, 2) if speed else None,
                "mfu": round(self._speed["speed/mfu"], 4) if "speed/mfu" in self._speed else None,
                "eta_s": round(self.left_s) if self.left_s is not None else None,
                "updated": round(time.time(), 1),
            },
        )

    def validated(self, step: int) -> bool:
        """Whether the validation after this step was done."""
        return step in self._validations.steps

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Take in a validation: `loss` and what else the task shows."""
        self._validations.write(step, values)
        self._validations.flush()
        self._show(step, {f"validation/{name}": value for name, value in values.items()})
        print(f"step {step}/{self.steps}  validation loss {values['loss']:.4f}", flush=True)

    def has_grid(self, step: int) -> bool:
        """Whether the image grid after this step was made."""
        return self._grid(step).exists()

    def _drop_grids_after(self, step: int) -> None:
        for file in (self.run / "grids").glob("step-*.png"):
            if file.name > self._grid(step).name:
                file.unlink()

    def _grid(self, step: int) -> Path:
        return self.run / "grids" / f"step-{step:08d}.png"

    def images(self, step: int, grid: Tensor, title: str) -> None:
        """Show an image grid, uint8 [height, width, 3], under a title, and keep it as grids/step-N.png."""
        from PIL import Image

        for board in self._boards:
            board.picture(step, title, grid)
        file = self._grid(step)
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        Image.fromarray(grid.numpy()).save(temporary, "PNG")
        temporary.rename(file)

    def flush(self) -> None:
        """Make what was written so far readable and durable; belongs before a checkpoint is published."""
        for lines in (self._steps, self._validations, self._speeds):
            lines.sync()
        for board in self._boards:
            board.flush()

    def close(self) -> None:
        """Flush and close everything."""
        for lines in (self._steps, self._validations, self._speeds):
            lines.close()
        for board in self._boards:
            board.close()


def spell(seconds: float) -> str:
    """A duration as a person says it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
