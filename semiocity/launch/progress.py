"""How far an attempt is, how fast, and what it took, from task files. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def measure(
    tasks: Sequence[Sequence[int]],
    states: Sequence[Mapping[str, Any]],
    now: float | None = None,
    before: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """What is done of the tasks' shards, or of the tasks where they make none, how fast, and how long it will take.

    `before` are shards done, and shards in all, of earlier attempts: they count, but not in the speed.
    {"unit", "done", "of", "share", "rows_per_s", "left_s"}; the last two None where nothing tells. Parts of a shard
    count.
    """
    mine = states[: len(tasks)]
    of = sum(map(len, tasks))
    if of or before[1]:
        unit = "shards"
        done = float(sum(shards_done(state, len(task)) for state, task in zip(mine, tasks)))
    else:
        unit, of = "tasks", len(mine)
        done = float(sum(state["state"] == "done" for state in mine))
    running = [state for state in mine if state["state"] == "running"]
    rates = [state["rows_per_s"] for state in running if state.get("rows_per_s")]
    begun = [state["started"] - state.get("spent_s", 0.0) for state in mine if state.get("started")]
    left_s = None
    if running and begun and 0 < done < of:
        elapsed = max((now or time.time()) - min(begun), 1e-3)
        left_s = round((of - done) * elapsed / done)
    done, of = done + before[0], of + before[1]
    return {
        "unit": unit,
        "done": int(done),
        "of": of,
        "share": round(done / of, 4) if of else 1.0,
        "rows_per_s": round(sum(rates), 2) if rates else None,
        "left_s": left_s,
    }


def shards_done(state: Mapping[str, Any], shards: int) -> float:
    """Shards of a task that are done, the one at hand by its rows."""
    if state["state"] == "done":
        return shards
    done = min(state.get("done_shards", 0), shards)
    if state["state"] == "running" and state.get("of") and done < shards:
        return done + min(state.get("rows", 0) / state["of"], 1.0)
    return done


def gpu_hours(data: Mapping[str, Any], written: Iterable[Mapping[str, Any]]) -> float:
    """GPU-hours that an attempt's tasks held, restarts included; the merge holds none."""
    asked = data.get("resources") or data.get("job", {}).get("resources") or {}
    gpus = asked.get("gpus_per_node", 0) * asked.get("nodes", 1)
    if not gpus:
        return 0.0
    merging = data["jobs"][data["merge"]] if data["merge"] is not None and data["merge"] < len(data["jobs"]) else None
    seconds = sum(
        facts.get("spent_s", 0.0) + facts["updated"] - facts["started"]
        for facts in written
        if "updated" in facts and "started" in facts and facts.get("job") != merging
    )
    return gpus * seconds / 3600


def clock(seconds: float) -> str:
    """`1:02:05`, `4:10`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
