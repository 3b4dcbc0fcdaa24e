"""Checkpoints: a folder that is there whole or not at all.

    checkpoints/step-00001234/
      PHASE-00003.safetensors   rank 3's part of a phase, and the buffers: see `shards`
      state.json                step, order, settings, ranks, digests of frozen weights
      complete.json             size and sha256 of every file above; written last
    checkpoints/latest          name of the newest one

All ranks write under a temporary name and make their files durable; then rank 0 renames the folder. Loading checks
every file, and falls back to the checkpoint before when one is damaged.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity.data import order
from semiocity.errors import UserError
from semiocity.files import adopt, fsync_folder, read_json, write_atomic, write_json
from semiocity.train import shards, zero
from semiocity.train.ema import Ema
from semiocity.train.options import FREE, LATER
from semiocity.train.schedule import refuse_decayed
from semiocity.train.zero import Engine, World

FORMAT = 1


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


class Checkpoints:
    """The checkpoints of a run. `save` and `load_newest` are collective."""

    def __init__(self, folder: Path, world: World, keep_last: int, delays_s: tuple[float, ...] = ()) -> None:
        self.folder, self.world, self.keep_last, self.delays_s = folder, world, keep_last, delays_s
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.tmp"):  # what a killed attempt did not finish
                shutil.rmtree(left, ignore_errors=True)
        zero.barrier()

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any], engines: list[Engine], averages: Mapping[str, Ema]) -> Path:
        """Write the checkpoint of `step`. When this returns, on any rank, it is published and durable."""
        first = self.world.rank == 0
        final, temporary = self.folder / name_of(step), self.folder / f".{name_of(step)}.tmp"
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        zero.barrier()
        if self.world.rank < len(self.delays_s):
            time.sleep(self.delays_s[self.world.rank])

        mine: dict[str, Any] = {}
        for engine in engines:
            for file in shards.save(temporary, self.world.rank, engine, averages.get(engine.phase.name)):
                mine[file.name] = _seal(file)

        parts = zero.gather(mine)  # nobody passes before every rank has made its files durable
        if first:
            write_json(temporary / "state.json", {"format": FORMAT, "step": step, "ranks": self.world.size, **state})
            listed = {name: seal for part in parts for name, seal in part.items()}
            listed["state.json"] = _seal(temporary / "state.json")
            write_json(temporary / "complete.json", {"format": FORMAT, "files": listed})
            _discard(final)  # a damaged one, or the same step from before a rollback
            temporary.rename(final)
            fsync_folder(self.folder)
            write_atomic(self.folder / "latest", f"{final.name}\n".encode())
            for old in self.published()[self.keep_last :]:
                _discard(old)
        zero.barrier()
        return final

    def published(self) -> list[Path]:
        """Checkpoints with a complete.json, newest first."""
        names = [p.name for p in self.folder.glob("step-*") if (p / "complete.json").is_file()]
        return [self.folder / name for name in sorted(names, reverse=True)]

    # -- loading ------------------------------------------------------------------------------------------------------

    def load_newest(self, state: Mapping[str, Any], engines: list[Engine], averages: Mapping[str, Ema]) -> int | None:
        """Load the newest undamaged checkpoint into engines and averages; returns its step, None when there is none.

        On as many ranks as wrote it everything is as it was, bit by bit. Raises UserError when it belongs to other
        settings than `state` or another order of samples, or when there are checkpoints but all are damaged.
        """
        names = zero.from_first([path.name for path in self.published()])
        for name in names:
            folder = self.folder / name
            faults = [fault for fault in zero.gather(self._fault(folder)) if fault]
            if not faults:
                return self._load(folder, state, engines, averages)
            if self.world.rank == 0:
                print(f"warning: {folder} is damaged, taking the one before: {faults[0]}", file=sys.stderr, flush=True)
        if names:
            raise UserError(
                f"{self.folder}: all {len(names)} checkpoints are damaged; delete the folder to start from step 0"
            )
        return None

    def _fault(self, folder: Path) -> str | None:
        """What is wrong with this rank's share of a checkpoint's files; None if nothing."""
        try:
            complete = read_json(folder / "complete.json")
        except (UserError, OSError) as error:
            return str(error)
        if complete["format"] != FORMAT:
            return f"format {complete['format']}, this version reads {FORMAT}"
        for name, seal in sorted(complete["files"].items())[self.world.rank :: self.world.size]:
            file = folder / name
            try:
                size = file.stat().st_size
                if size != seal["bytes"]:
                    return f"{name} has {size} bytes instead of {seal['bytes']}"
                if _sha256(file) != seal["sha256"]:
                    return f"{name} has other content than was written"
            except OSError as error:
                return str(error)
        return None

    def _load(self, folder: Path, state: Mapping[str, Any], engines: list[Engine], averages: Mapping[str, Ema]) -> int:
        saved = read_json(folder / "state.json")
        refuse_other(folder, saved, state)
        if saved["ranks"] != self.world.size and self.world.rank == 0:
            print(f"{folder}: written by {saved['ranks']} ranks; dividing it among {self.world.size}", flush=True)
        for engine in engines:
            shards.load(folder, self.world.rank, saved["ranks"], engine, averages.get(engine.phase.name))
        return int(saved["step"])


def refuse_other(folder: Path, saved: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """UserError that names the first setting in which the checkpoint differs from this run."""
    then, now = saved["settings"], state["settings"]
    for key in sorted((then.keys() | now.keys()) - FREE):
        was, is_now = (settings.get(key, LATER.get(key)) for settings in (then, now))
        if was != is_now:
            raise UserError(
                f"{folder}: {key} was {was!r} when this checkpoint was written and is {is_now!r} now; "
                f"set it back, or start another run with --set run=NAME"
            )
    if why := refuse_decayed(saved.get("schedule", {}), state["schedule"], saved["step"]):
        raise UserError(f"{folder}: {why}")
    order.refuse_other(saved["order"], state["order"], str(folder))
    if saved["frozen"] != state["frozen"]:
        raise UserError(
            f"{folder}: the frozen weights are others now ({saved['frozen']} then, {state['frozen']} now); put them "
            "back, or start another run with --set run=NAME"
        )


def _seal(file: Path) -> dict[str, Any]:
    """Make a file durable; its size and digest."""
    adopt(file)
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _discard(folder: Path) -> None:
    """Delete a folder in such an order that no reader takes what is left of it for a checkpoint."""
    if folder.exists():
        grave = folder.with_name(f".{folder.name}.old.tmp")
        shutil.rmtree(grave, ignore_errors=True)
        folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
