"""Curves and pictures for Weights & Biases, beside TensorBoard's.

    RUN/wandb.json    id of the run there: an attempt that goes on writes into the same one
    RUN/wandb/        what offline attempts left, for `wandb sync` on a login node

The key is read by wandb itself, from WANDB_API_KEY. Nothing that goes wrong here ends a training: it is said once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.train.metrics import Board
from semiocity.train.options import TrainJob


def open_wandb(job: TrainJob, run: Path, step: int) -> list[Board]:
    """The board of a run that goes on after `step` steps; none where the job asks for none, or where it cannot be had,
    which is said."""
    if job.wandb is None:
        return []
    try:
        return [Wandb(job, run, step)]
    except Exception as error:
        print(f"warning: no Weights & Biases in this attempt: {type(error).__name__}: {error}", flush=True)
        return []


class Wandb:
    """One W&B run for all attempts of a training."""

    def __init__(self, job: TrainJob, run: Path, step: int) -> None:
        import wandb

        options = job.wandb
        assert options is not None
        self._wandb, self._pictures, self._failed = wandb, options.pictures, False
        place = _place(run, options.project, options.entity)
        self._run: Any = wandb.init(
            project=place["project"],
            entity=place["entity"],
            id=place["id"],
            name=run.name,
            dir=run,
            mode=options.mode,
            # Offline nobody can be asked what is there; syncing appends.
            resume="allow" if options.mode == "online" else None,
            tags=list(options.tags) or None,
            config=job.model_dump(mode="json"),
            # Our own log and code snapshot are in the run folder.
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, silent=True),
        )
        if options.mode == "offline":
            print(f"Weights & Biases: wandb sync --id {place['id']} {run / 'wandb'}/offline-run-*", flush=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._run.log(dict(values), step=step))

    def picture(self, step: int, name: str, grid: Tensor) -> None:
        if self._pictures:
            self._try(lambda: self._run.log({name: self._wandb.Image(grid.numpy())}, step=step))

    def flush(self) -> None:
        """Its own process writes all the time."""

    def close(self) -> None:
        self._try(self._run.finish)

    def _try(self, what: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            what()
        except Exception as error:
            self._failed = True
            print(f"warning: Weights & Biases stopped: {type(error).__name__}: {error}", flush=True)


def _place(run: Path, project: str, entity: str | None) -> dict[str, Any]:
    """Where the curves go: said by the first attempt, and the same for all that follow."""
    file = run / "wandb.json"
    try:
        found: dict[str, Any] = read_json(file)
        return found
    except (FileNotFoundError, UserError):
        place = {"id": secrets.token_hex(8), "project": project, "entity": entity}
        write_json(file, place)
        return place
