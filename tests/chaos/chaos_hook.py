# ruff: noqa: PTH105, PTH110, PTH123 (this runs inside audit hooks: as little as possible)
"""Runs inside the tasks of a disturbed job: stops a process at a named point, and notes every unit of work.

The arena (`arena.py`) gives tasks a Python that imports this at its start. Nothing of semiocity is changed: points are
recognised by what the interpreter's audit events say (which file is renamed to what), units by two wrapped methods.

A folder, named by SEMIOCITY_CHAOS, is the way to and from the tool:
  trap.json        {"id", "work", "phase", "hold_s"}: the next process that comes to this point is to stop there
  ID.hit.json      written by that process: who it is
  ID.go            written by the tool: go on (if you still can)
  units.jsonl      a line a row that is computed or step that is done
  clock            seconds that `time.time` is off by
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import suppress
from typing import Any

FOLDER = os.environ.get("SEMIOCITY_CHAOS", "")
# (work, phase) by what a file is renamed to.
RENAMED = [
    (re.compile(r"/columns/caption/.*/\d{8}\.tar$"), ("caption", "save")),
    (re.compile(r"/columns/caption/.*/\d{8}\.parquet$"), ("caption", "rename")),
    (re.compile(r"/columns/caption/.*/\d{8}\.json$"), ("caption", "receipt")),
    (re.compile(r"/checkpoints/step-\d+$"), ("train", "rename")),
    (re.compile(r"/checkpoints/latest$"), ("train", "receipt")),
    (re.compile(r"/rendezvous\.json$"), ("train", "rendezvous")),
]
OPENED = [
    (re.compile(r"/checkpoints/\.step-\d+\.tmp/"), ("train", "save")),
    (re.compile(r"/rendezvous\.json$"), ("train", "rendezvous")),
]
_busy = False
_real_time = time.time


def install() -> None:
    """Begin to listen, in tasks only."""
    if FOLDER and "semiocity.launch.entry" in sys.orig_argv:
        sys.addaudithook(_audit)
        time.time = _shifted


def _shifted() -> float:
    try:
        with open(f"{FOLDER}/clock") as file:
            return _real_time() + float(file.read() or 0)
    except (OSError, ValueError):
        return _real_time()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    global _busy
    if event not in ("os.rename", "open") or _busy:
        return
    _busy = True
    try:
        _wrap()
        table, path = (RENAMED, arguments[1]) if event == "os.rename" else (OPENED, arguments[0])
        if isinstance(path, (str, bytes, os.PathLike)):
            text = os.fsdecode(path)
            for pattern, (work, phase) in table:
                if pattern.search(text):
                    at(work, phase)
    finally:
        _busy = False


def at(work: str, phase: str) -> None:
    """This process is at a point: stop here if the trap is set for it."""
    try:
        with open(f"{FOLDER}/trap.json") as file:
            trap = json.load(file)
    except (OSError, ValueError):
        return
    if (trap["work"], trap["phase"]) != (work, phase):
        return
    try:
        handle = os.open(f"{FOLDER}/{trap['id']}.claim", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.close(handle)
    facts = {
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "node": os.environ.get("SLURMD_NODENAME"),
        "rank": int(os.environ.get("SLURM_PROCID", "0")),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "time": _real_time(),
    }
    with open(f"{FOLDER}/.{trap['id']}.tmp", "w") as file:
        json.dump(facts, file)
    os.replace(f"{FOLDER}/.{trap['id']}.tmp", f"{FOLDER}/{trap['id']}.hit.json")
    end = time.monotonic() + trap["hold_s"]
    while time.monotonic() < end and not os.path.exists(f"{FOLDER}/{trap['id']}.go"):
        time.sleep(0.02)


def note(unit: str) -> None:
    """A unit of work is done. Appended in one write: several processes share the file."""
    line = {"unit": unit, "job": os.environ.get("SLURM_JOB_ID"), "time": round(_real_time(), 3)}
    line["restart"] = os.environ.get("SLURM_RESTART_COUNT", "0")
    with suppress(OSError):
        handle = os.open(f"{FOLDER}/units.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, json.dumps(line).encode() + b"\n")
        os.close(handle)


def _wrap() -> None:
    """Wrap the methods that do a unit, once their modules are imported."""
    stage = sys.modules.get("semiocity.stages.caption")
    for kind in vars(stage).values() if stage else ():
        if isinstance(kind, type) and "process" in vars(kind) and not hasattr(kind.process, "noted"):
            kind.process = _noting_rows(kind.process)  # type: ignore[attr-defined]
    watchdog = getattr(sys.modules.get("semiocity.train.watchdog"), "Watchdog", None)
    if watchdog is not None and not hasattr(watchdog.beat, "noted"):
        watchdog.beat = _noting_steps(watchdog.beat)


def _noting_rows(process: Any) -> Any:
    def noting(self: Any, rows: Any) -> Any:
        at("caption", "work")
        made = process(self, rows)
        for row in rows:
            note(row.key)
        return made

    noting.noted = True  # type: ignore[attr-defined]
    return noting


def _noting_steps(beat: Any) -> Any:
    def noting(self: Any) -> Any:
        at("train", "work")
        if self.place.rank == 0:
            _steps[0] += 1
            note(f"step+{_steps[0]}")
        return beat(self)

    noting.noted = True  # type: ignore[attr-defined]
    return noting


_steps = [0]

install()
