"""How fast arrays are, as TensorBoard scalars: runs/NAME/tb/KIND-ATTEMPT. Standard library only.

Tasks do not write events: ten thousand event files would be read by nobody. The board writes one file for all of an
array's tasks while it serves, and fills in what happened before from the times in the task files.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.data.lease import Owner, lease
from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.launch import events
from semiocity.launch.progress import measure
from semiocity.launch.runs import Attempt, all_runs, attempts
from semiocity.launch.status_tasks import task_states

KINDS = ("pack", "stage", "reduce", "view", "generate")
POINTS = 200
"""Most points that are filled in from task files."""


def record_all(runs: Path, live: Mapping[str, str] | None = None) -> int:
    """Record every run's newest array, and those that were still at work when it was submitted; returns how many have
    something to show."""
    shown = 0
    for run in all_runs(runs):
        with suppress(OSError, UserError):  # somebody else's run, or one that is just being made
            for attempt in _at_work(run):
                shown += record(attempt, live)
    return shown


def _at_work(run: Path) -> list[Attempt]:
    made = [attempt for attempt in attempts(run) if attempt.file.exists()]
    live = set(made[-1].read().get("live", ())) if made else set()
    return [*(attempt for attempt in made[:-1] if live and live & set(attempt.read()["jobs"])), *made[-1:]]


def record(attempt: Attempt, live: Mapping[str, str] | None = None, now: float | None = None) -> bool:
    """Add to an array's curves what is new: shards that are done, rows/s, running and failed tasks, over seconds.

    Returns whether there are curves. One process at a time writes; others leave it to that one.
    """
    data = attempt.read()
    if data["kind"] not in KINDS:
        return False
    folder = attempt.run / "tb" / f"{data['kind']}-{attempt.number:04d}"
    states = task_states(attempt, live)
    begun = [state["started"] - state.get("spent_s", 0.0) for state in states if state.get("started")]
    if not begun:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with lease(folder / ".writer.lease", Owner.here("throughput"), stale_s=60.0) as held:
        if held:
            _write(folder, data, states, min(begun), now or time.time())
    return True


def _write(
    folder: Path, data: Mapping[str, Any], states: Sequence[Mapping[str, Any]], began: float, now: float
) -> None:
    note = folder / "written.json"
    try:
        before = read_json(note)
    except (FileNotFoundError, UserError):
        before = {"time": 0.0, "values": None}
    points = past(data, states, before["time"], now)
    values = current(data, states)
    if values != before["values"]:
        points.append((now, values))
    if not points:
        return
    file = folder / f"events.out.tfevents.{int(began):010d}.{socket.gethostname()}.{os.getuid()}.array"
    for moment, scalars in points:
        events.append(file, moment, max(0, round(moment - began)), scalars)
    write_json(note, {"time": now, "values": values})


def current(data: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The scalars of this moment."""
    work = measure(data["tasks"], states)
    return {
        f"array/{work['unit']}_done": float(work["done"]),
        "array/rows_per_s": float(work["rows_per_s"] or 0.0),
        "array/running": float(sum(state["state"] == "running" for state in states)),
        "array/failed": float(sum(state["state"] in ("failed", "lost") for state in states)),
    }


def past(
    data: Mapping[str, Any], states: Sequence[Mapping[str, Any]], since: float, until: float
) -> list[tuple[float, dict[str, float]]]:
    """(time, scalars) for what ended between two looks, from the times that tasks noted themselves."""
    ended = sorted(
        (state["updated"], state["state"] == "done", len(task) or 1)
        for state, task in zip(states, data["tasks"])
        if state["state"] in ("done", "failed") and "updated" in state
    )
    unit = "shards" if any(data["tasks"]) else "tasks"
    shards = failed = 0
    found = []
    for moment, well, size in ended:
        shards, failed = (shards + size, failed) if well else (shards, failed + 1)
        if since < moment < until:
            found.append((moment, {f"array/{unit}_done": float(shards), "array/failed": float(failed)}))
    step = -(-len(found) // POINTS) if found else 1
    return found[::step] if step == 1 else [*found[::step], found[-1]]
