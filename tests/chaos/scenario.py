"""One job driven to its end through disturbances, as a user would: submit again until it is complete, then look."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from arena import Arena
from disturbances import KINDS

ROWS, SHARD_ROWS, TASKS = 120, 5, 3
PACK = [
    "source.size=[32, 32]", "source.train=96", "source.val=24", f"shard_rows={SHARD_ROWS}",
]  # fmt: skip
CAPTION = [
    "args.batch=2", "args.rehearse_slow_batch_s=0.05", "resources.shards_per_task=4",
    f"resources.array_parallelism={TASKS}", "resources.timeout_min=30",
]  # fmt: skip
STEPS, CHECKPOINT_EVERY = 30, 4
TRAIN = [
    "data.size=32", "model.channels=8", "model.spade_hidden=8", "model.mult=[1, 1]", "model.res_blocks=1",
    f"steps={STEPS}", "global_batch=4", "log_every=1", f"checkpoint_every={CHECKPOINT_EVERY}", "sample_every=0",
    "resources.nodes=2", "resources.ranks_per_node=1", "resources.timeout_min=30", "rehearse.slow_step_s=0.05",
    "hang.times=20", "hang.at_least_s=60",
]  # fmt: skip
JOBS = {
    "caption": ("caption", "jobs/caption.toml", CAPTION),
    "train": ("train", "jobs/demo-train.toml", TRAIN),
}
CLUSTER = 'executor = "slurm"\npartition = "main"\n'
PATIENCE_S = 900
REGISTER_S = 40
"""How often an operator has nodes register anew when the controller was killed. It saves its state every few seconds,
so it may believe in a job that ended just before; it asks about jobs that began more than 20 s ago."""
PATIENT = 30
"""Refusals in a row, while nothing runs, after which the user gives up."""
LEFT = (".tmp", ".lease")  # a journal is a temporary file, too


def words(sets: list[str]) -> list[str]:
    return [word for item in sets for word in ("--set", item)]


def job_line(work: str) -> tuple[str, ...]:
    """The user's command line for one of JOBS."""
    verb, file, sets = JOBS[work]
    return (verb, file, *words(sets))


def drive(arena: Arena, work: str, strikes: list[tuple[str, str]], chance: random.Random) -> None:
    """Run `work` to its end; disturb it by each (phase, kind) of `strikes`, one after the other.

    Raises AssertionError when it does not become complete. What happened is noted in `arena.strikes`.
    """
    arena.job = job_line(work)
    waiting = list(enumerate(strikes))
    name, refused = "", 0
    end = time.monotonic() + PATIENCE_S
    look = time.monotonic() + REGISTER_S
    while time.monotonic() < end:
        if time.monotonic() > look and any(strike["kind"] == "kill_slurmctld" for strike in arena.strikes):
            with suppress(RuntimeError):
                arena.cluster.call("scontrol", "reconfigure")
            look = time.monotonic() + REGISTER_S
        if waiting and not name:
            name = f"{len(arena.strikes):03d}-{waiting[0][1][1]}-{waiting[0][1][0]}"
            arena.arm(name, work, waiting[0][1][0])
        hit = arena.hit(name) if name else None
        if hit is not None:
            arena.disarm()
            hit["id"] = name
            _strike(arena, work, *waiting.pop(0)[1], hit, chance)
            name = ""
            continue
        if not arena.live():
            done = arena.run(*arena.job)
            assert done.returncode in (0, 1, 2), arena.said[-1]
            if "nothing to do" in done.stdout:
                arena.disarm()
                arena.missed = [strike for _, strike in waiting]
                _fill_in(arena)
                return
            refused = refused + 1 if done.returncode == 2 else 0
            assert refused < PATIENT, f"refused {refused} times in a row: {arena.said[-1]}"
            arena.submitted.append(time.time())
            time.sleep(1)  # nobody types faster
        time.sleep(0.1)
    raise AssertionError(f"{work} is not complete after {PATIENCE_S} s and {len(arena.submitted)} submissions")


def _strike(arena: Arena, work: str, phase: str, kind: str, hit: dict[str, Any], chance: random.Random) -> None:
    before, began = len(arena.units()), time.time()
    KINDS[kind](arena, hit, chance)
    arena.release(hit["id"])
    arena.strikes.append({"phase": phase, "kind": kind, "job": hit["job"], "units_before": before, "began": began})


def _fill_in(arena: Arena) -> None:
    """For each strike, the seconds to the next unit of what it hit, or of whatever was submitted in its place."""
    units = arena.units()
    for strike in arena.strikes:
        again = min((at for at in arena.submitted if at > strike["began"]), default=float("inf"))
        later = [
            unit["time"]
            for unit in units[strike["units_before"] :]
            if unit["time"] > strike["began"] and (unit["job"] == strike["job"] or unit["time"] > again)
        ]
        strike["recovery_s"] = round(min(later) - strike["began"], 1) if later else None


# ---------------------------------------------------------------- what came out


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def outcome(project: Path, work: str) -> dict[str, Any]:
    """What must not depend on how the work was disturbed."""
    if work == "caption":
        return digests(project / "data" / "city" / "columns" / "caption")
    run = next((project / "runs").glob("*sdm*"), None) or next((project / "runs").glob("*train*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    newest = max((run / "checkpoints").glob("step-*"))
    return {
        "export": digests(run / "export"),
        "checkpoint": {name: value for name, value in digests(newest).items() if name.endswith(".safetensors")},
        "steps": [line["step"] for line in lines],
        "losses": [line["loss"] for line in lines],
    }


def leftovers(project: Path) -> list[str]:
    """Temporary files, leases and half checkpoints that nobody will remove."""
    found = []
    for folder in (project / "data", project / "runs"):
        for path in folder.rglob("*"):
            if path.name.endswith(LEFT):
                found.append(str(path.relative_to(project)))
    return found


class Life(NamedTuple):
    """One start of a training, as its run folder and the hook tell."""

    first_step: int
    steps: int
    """Steps that it made."""


def lives(arena: Arena) -> list[Life]:
    """Every start of the training, in order."""
    (file,) = (arena.project / "runs").glob("*/history.jsonl")
    starts = [json.loads(line) for line in file.read_text().splitlines()]
    made = Counter((unit["job"], int(unit["restart"])) for unit in arena.units())
    return [Life(start["first_step"], made[str(start["job"]), int(start["restart"])]) for start in starts]


def repeated(arena: Arena, work: str) -> int:
    """Rows or steps that were computed more than once."""
    units = arena.units()
    return len(units) - (len({unit["unit"] for unit in units}) if work == "caption" else STEPS)


def figures(arena: Arena, work: str) -> dict[str, Any]:
    """What `soak_report.chaos_table` wants to know of a scenario."""
    again = repeated(arena, work)
    return {
        "work": work,
        "strikes": arena.strikes,
        "repeated": again,
        "wanted": len(arena.units()) - again,
        "submissions": len(arena.submitted),
    }


def not_resumed(begun: Sequence[Life]) -> list[str]:
    """Starts of a training that went back further than they had to; a training that never did is resumed throughout.

    A checkpoint is waited for before the next one is written. So who got to step 4 n has left that of step 4 (n - 1).
    """
    faults = []
    for number, (before, after) in enumerate(pairwise(begun), start=1):
        reached = before.first_step + before.steps
        least = max(before.first_step, (reached // CHECKPOINT_EVERY - 1) * CHECKPOINT_EVERY)
        if after.first_step < least:
            faults.append(
                f"start {number + 1} began at step {after.first_step}, though the one before had come from step "
                f"{before.first_step} to {reached}: {least} at least was saved"
            )
    return faults


def most_repeated(work: str, strikes: int, starts: int = 0) -> int:
    """Rows or steps that may have been computed again: what was under way where something struck, and no more.

    A caption task works at one shard, and three are at work; a training goes back by two checkpoints at most.
    """
    return strikes * TASKS * SHARD_ROWS if work == "caption" else max(0, starts - 1) * (2 * CHECKPOINT_EVERY - 1)


def faults(arena: Arena, work: str) -> list[str]:
    """What was computed in vain, or from its beginning, although it had been saved."""
    begun = lives(arena) if work == "train" else []
    again, most = repeated(arena, work), most_repeated(work, len(arena.strikes), len(begun))
    found = not_resumed(begun)
    if again < 0:
        found.append(f"{-again} steps were never made")
    if again > most:
        found.append(f"{again} rows or steps were computed again; {most} at most were under way")
    wanted = ROWS if work == "caption" else STEPS
    if len(arena.units()) - again != wanted:
        found.append(f"{len(arena.units()) - again} rows or steps of {wanted} were seen")
    return found
