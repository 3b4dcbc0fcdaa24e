"""Checkpoints: a folder that is there whole or not at all.

    checkpoints/step-00001234/
      PHASE-00003.safetensors   rank 3's part of a phase, and the buffers: see `shards`
      state.json                step, order, settings, ranks, digests of frozen weights
      complete.json             size and sha256 of every file above; written last
    checkpoints/latest          name of the newest one

All ranks write under a temporary name and make their files durable; then rank 0 renames the folder. This goes on in a
thread of each rank while the training does (docs/checkpoints.md): with every step's message the ranks tell one another
whether their part is done, and when all are, they go on to the next part of the work together. Loading checks every
file, and falls back to the checkpoint before when one is damaged.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch

from semiocity import ranks
from semiocity.data import order
from semiocity.errors import UserError
from semiocity.files import fsync_folder, read_json, write_atomic, write_json
from semiocity.train import host_memory, shards, zero
from semiocity.train.ema import Ema
from semiocity.train.options import FREE, LATER
from semiocity.train.schedule import refuse_decayed
from semiocity.train.shards import Part
from semiocity.train.staged import Writer
from semiocity.train.zero import Engine, World

FORMAT = 1
HOST_SHARE = 0.8
"""Of the memory that is free on a machine, copies may take so much: reading ahead and the disk's cache need some."""


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


class Keep(NamedTuple):
    """Which checkpoints stay."""

    last: int
    """So many of the newest."""
    every: int | None = None
    """And those of steps that are multiples of this, for good."""


class _Pending(NamedTuple):
    """A checkpoint that is being made."""

    step: int
    state: Mapping[str, Any]
    began: float
    work: Future[Any]
    """This rank's part of what is under way: writing its files, then (rank 0) publishing them all."""
    publishing: bool = False
    size: int = 0
    """Bytes of all files."""


class Checkpoints:
    """The checkpoints of a run. All methods but `ready` and `wait_copied` are collective."""

    def __init__(
        self,
        folder: Path,
        world: World,
        device: torch.device,
        keep: Keep,
        *,
        background: bool = True,
        delays_s: tuple[float, ...] = (),
    ) -> None:
        """`background`: write while training goes on, where the machines have memory for the copies. `delays_s`:
        seconds that each rank waits before it writes, for rehearsals."""
        self.folder, self.world, self.keep, self.delays_s = folder, world, keep, delays_s
        self.background = background
        self._writer = Writer(device)
        self._pending: _Pending | None = None
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.tmp"):  # what a killed attempt did not finish: folders, and `latest` as a file
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
        zero.barrier()

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(
        self, step: int, state: Mapping[str, Any], engines: list[Engine], averages: Mapping[str, Ema], *, wait: bool
    ) -> None:
        """Make the checkpoint of `step`. With `wait` it is published and durable when this returns on any rank; else
        that happens while training goes on, as long as the loop calls `wait_copied` and `advance`.

        Waits for the one before if that is still being written. Raises UserError on every rank when any rank cannot
        write, now or in whichever of these methods is called next.
        """
        if self._pending and not self._pending.work.done() and not wait and self.world.rank == 0:
            print(
                f"the checkpoint of step {step} waits for that of step {self._pending.step} to be written; a larger "
                "checkpoint_every would spare that",
                flush=True,
            )
        self.finish()
        began = time.monotonic()
        parts = [
            part
            for engine in engines
            for part in shards.parts(self.world.rank, engine, averages.get(engine.phase.name))
        ]
        copy = not wait and self.background and self._room_for(parts)
        temporary = self.folder / f".{name_of(step)}.tmp"
        if self.world.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        zero.barrier()
        work = self._writer.write(parts, temporary, copy=copy, before=self._rehearse)
        self._pending = _Pending(step, state, began, work)
        if not copy:
            self.finish()

    def ready(self) -> float:
        """1 when this rank has done its part of what is under way, else 0. Once the sum over the ranks is their number,
        all of them call `advance`."""
        return float(self._pending is not None and self._pending.work.done())

    def advance(self) -> None:
        """Wait for what is under way and begin what comes after it: first all files, then their publication."""
        pending = self._pending
        assert pending is not None
        files = self._agree(pending)
        if pending.publishing:
            self._pending = None
            if self.world.rank == 0:
                seconds = time.monotonic() - pending.began
                print(f"saved step {pending.step}: {pending.size / 1e9:.3g} GB in {seconds:.1f} s", flush=True)
            return
        seals = {name: seal for part in files for name, seal in part.items()}
        work = self._writer.submit(lambda: self._publish(pending, seals) if self.world.rank == 0 else None)
        size = sum(seal["bytes"] for seal in seals.values())
        self._pending = pending._replace(work=work, publishing=True, size=size)

    def finish(self) -> None:
        """Return when nothing is under way any more."""
        while self._pending:
            self.advance()

    def wait_copied(self) -> None:
        """Return once weights, moments and averages may change."""
        self._writer.wait_copied()

    def close(self) -> None:
        """Give up what is under way. The next attempt removes what is left of it."""
        self._writer.close()

    def published(self) -> list[Path]:
        """Checkpoints with a complete.json, newest first."""
        names = [p.name for p in self.folder.glob("step-*") if (p / "complete.json").is_file()]
        return [self.folder / name for name in sorted(names, reverse=True)]

    def _agree(self, pending: _Pending) -> list[Any]:
        """What the work gave, by rank. When it failed on any rank, all of them raise the same."""
        result, fault = None, None
        try:
            result = pending.work.result()
        except Exception as error:
            fault = str(error) or type(error).__name__
        # Asked last: an attempt that has begun meanwhile removes our files, which is no fault of the disk.
        told = zero.gather((result, fault, ranks.superseded(self.world)))
        if late := next((late for _, _, late in told if late), None):
            raise ranks.Superseded(f"rank {self.world.rank} outlived its time: {late}; it ends here")
        if faults := [f"rank {rank}: {fault}" for rank, (_, fault, _) in enumerate(told) if fault]:
            raise UserError(
                f"{self.folder}: the checkpoint of step {pending.step} could not be written ({faults[0]}); those "
                "before it are kept"
            )
        return [result for result, _, _ in told]

    def _rehearse(self) -> None:
        if self.world.rank < len(self.delays_s):
            time.sleep(self.delays_s[self.world.rank])

    def _publish(self, pending: _Pending, seals: dict[str, Any]) -> None:
        """On rank 0, when every rank has made its files durable."""
        final, temporary = self.folder / name_of(pending.step), self.folder / f".{name_of(pending.step)}.tmp"
        facts = {"format": FORMAT, "step": pending.step, "ranks": self.world.size, **pending.state}
        write_json(temporary / "state.json", facts)
        listed = {**seals, "state.json": _seal(temporary / "state.json")}
        write_json(temporary / "complete.json", {"format": FORMAT, "files": listed})
        # Another attempt may have gone on from an earlier checkpoint; it must not find a newer one of ours.
        ranks.refuse_superseded(self.world)
        _discard(final)  # a damaged one, or the same step from before a rollback
        temporary.rename(final)
        fsync_folder(self.folder)
        write_atomic(self.folder / "latest", f"{final.name}\n".encode())
        for old in to_remove(self.published(), self.keep):
            _discard(old)

    def _room_for(self, parts: list[Part]) -> bool:
        """Whether the machines have memory for copies on the host; if not, none are made from now on."""
        missing = self._writer.missing_bytes(parts)
        host = socket.gethostname()
        told = zero.gather((host, missing, host_memory.available_bytes() if missing else None))
        for name in sorted({name for name, wanted, _ in told if wanted}):
            wanted = sum(wanted for other, wanted, _ in told if other == name)
            free = min(free for other, _, free in told if other == name and free is not None)
            if wanted > HOST_SHARE * free:
                self.background = False
                if self.world.rank == 0:
                    print(
                        f"checkpoints are written while the training waits: copies of what a checkpoint holds take "
                        f"{wanted / 1e9:.3g} GB on {name}, and {free / 1e9:.3g} GB are free. A larger resources.mem_gb "
                        "would help; checkpoint_async = false asks for this",
                        flush=True,
                    )
                return False
        return True

    # -- loading ------------------------------------------------------------------------------------------------------

    def load_newest(self, state: Mapping[str, Any], engines: list[Engine], averages: Mapping[str, Ema]) -> int | None:
        """Load the newest undamaged checkpoint into engines and averages; returns its step, None when there is none.

        On as many ranks as wrote it everything is as it was, bit by bit. Raises UserError when it belongs to other
        settings than `state` or another order of samples, or when there are checkpoints but all are damaged.
        """
        self.finish()
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


def to_remove(published: list[Path], keep: Keep) -> list[Path]:
    """Of checkpoints, newest first, those that need not stay."""
    return [old for old in published[keep.last :] if not (keep.every and step_of(old) % keep.every == 0)]


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def _seal(file: Path) -> dict[str, Any]:
    """Size and digest of a file."""
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
