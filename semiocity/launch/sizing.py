"""How many shards a task makes: as many as take `resources.task_min` minutes, by what was measured before.

Nothing is measured for its own sake. A task's state says when it began, and the receipts of its shards when they were
published: that is what a shard took, the start of the task included.
"""

from __future__ import annotations

import statistics
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from semiocity.config import Resources
from semiocity.data.layout import ShardPath
from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch.compact import packed_states
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt, all_runs, attempts

UNMEASURED = 8
"""Shards of a task as long as nobody knows how long one takes: few enough to learn it soon."""
RECENT, ENOUGH = 3, 32
"""Attempts of a run, and tasks of an attempt, that are looked at."""


def shards_per_task(resources: Resources, shard_s: float | None, todo: int, room: int | None = None) -> int:
    """Shards (or whatever is made together) for each task, of `todo` altogether.

    `shard_s` is what one took, None when that is not known; `room` is how many tasks the site lets us queue. What the
    job fixes stays as it is. Otherwise every one of `array_parallelism` places gets some before any gets more.
    """
    if resources.shards_per_task is not None:
        return resources.shards_per_task
    target_s = 60 * min(resources.task_min, resources.timeout_min / 2)
    long_enough = UNMEASURED if shard_s is None else int(target_s / max(shard_s, 1e-3))
    size = max(1, min(long_enough, -(-todo // resources.array_parallelism)))
    return max(size, -(-todo // room)) if room else size


def measured_s(work: Work) -> float | None:
    """Seconds a shard: the median over tasks of this run's newest attempts, or of the same job over another dataset."""
    others = [attempts(run)[-1:] for run in all_runs(work.run.parent) if run != work.run]
    for attempt in chain(reversed(attempts(work.run)[-RECENT:]), *others):
        with suppress(OSError, UserError, KeyError, TypeError):
            data = attempt.read()
            if _same_kind(data, work) and (found := attempt_s(attempt, data)):
                return statistics.median(found)
    return None


def _same_kind(data: dict[str, Any], work: Work) -> bool:
    """Whether an attempt did the same to each shard as `work` will."""
    if (data["kind"], data["column"]) != (work.kind, work.column):
        return False
    return all(data["job"].get(key) == work.job.get(key) for key in ("stage", "args", "reduce"))


def attempt_s(attempt: Attempt, data: dict[str, Any]) -> list[float]:
    """Seconds a shard of each task of an attempt, of those that made some."""
    folder = Path(data["dataset"]) / "columns" / data["column"] / data["revision"]
    packed = packed_states(attempt)
    found: list[float] = []
    for index, shards in enumerate(data["tasks"]):
        if len(found) >= ENOUGH:
            break
        try:
            began = (packed.get(index) or read_json(attempt.task_file(index)))["started"]
        except (FileNotFoundError, UserError, KeyError):
            continue
        ends = []
        for shard in shards:
            with suppress(FileNotFoundError):
                ends.append(ShardPath(folder, shard).receipt.stat().st_mtime - began)
        ends = [end for end in ends if end > 0]
        if ends:
            found.append(max(ends) / len(ends))
    return found
