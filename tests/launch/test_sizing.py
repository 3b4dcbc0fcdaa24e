"""Shards a task: from what was measured, within what job and site allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Resources
from semiocity.data.layout import ShardPath
from semiocity.files import write_json
from semiocity.launch import sizing
from semiocity.launch.compact import compact
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt, new_attempt


@pytest.mark.parametrize(
    ("keys", "shard_s", "todo", "room", "expected"),
    [
        ({"shards_per_task": 3}, 0.1, 1000, None, 3),
        ({"shards_per_task": 3}, 0.1, 1000, 10, 3),  # the job has fixed it
        ({}, None, 1000, None, sizing.UNMEASURED),
        ({}, None, 100, None, 2),  # all 64 places get some
        ({}, 60, 100_000, None, 20),  # 20 minutes
        ({"task_min": 60, "timeout_min": 240}, 60, 100_000, None, 60),
        ({"task_min": 60}, 60, 100_000, None, 30),  # half of the time limit
        ({}, 3600, 100_000, None, 1),
        ({}, 0.01, 1000, None, 16),
        ({}, 60, 100_000, 500, 200),  # the site lets us queue 500 tasks
        ({}, 60, 1, None, 1),
    ],
)
def test_size(keys: dict[str, Any], shard_s: float | None, todo: int, room: int | None, expected: int) -> None:
    assert sizing.shards_per_task(Resources(**keys), shard_s, todo, room) == expected


def finished(run: Path, dataset: Path, seconds: float, per_task: int = 4, **job: Any) -> Attempt:
    """An attempt of five tasks whose shards took `seconds` each, as files tell."""
    attempt = new_attempt(run)
    tasks = [list(range(first, first + per_task)) for first in range(0, 5 * per_task, per_task)]
    facts = {"kind": "stage", "column": "c", "revision": "r", "dataset": str(dataset), "executor": "slurm"}
    jobs = [f"9_{index}" for index in range(5)]
    attempt.write({**facts, "job": {"stage": "s", "args": {}, **job}, "tasks": tasks, "jobs": jobs})
    for index, shards in enumerate(tasks):
        write_json(attempt.task_file(index), {"state": "done", "job": jobs[index], "started": 1e9})
        for place, shard in enumerate(shards, 1):
            receipt = ShardPath(dataset / "columns/c/r", shard).receipt
            receipt.parent.mkdir(parents=True, exist_ok=True)
            receipt.touch()
            os.utime(receipt, (1e9 + place * seconds,) * 2)
    return attempt


def work(run: Path, dataset: Path, **job: Any) -> Work:
    return Work("stage", run, dataset, {"stage": "s", "args": {}, **job}, Resources(), column="c", revision="new")


def test_seconds_a_shard_come_from_task_files_and_receipts(tmp_path: Path) -> None:
    runs, dataset = tmp_path / "runs", tmp_path / "data"
    mine = work(runs / "a", dataset)
    assert sizing.measured_s(mine) is None
    attempt = finished(runs / "a", dataset, 7.0)
    assert sizing.measured_s(mine) == pytest.approx(7)
    compact(attempt)
    assert not list((attempt.folder / "tasks").iterdir())
    assert sizing.measured_s(mine) == pytest.approx(7)


def test_another_dataset_with_the_same_job_serves_too(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished(runs / "small", tmp_path / "small", 3.0)
    assert sizing.measured_s(work(runs / "big", tmp_path / "big")) == pytest.approx(3)
    assert sizing.measured_s(work(runs / "big", tmp_path / "big", args={"batch": 2})) is None


def test_shards_that_were_there_before_do_not_count(tmp_path: Path) -> None:
    """A task that skipped three of four shards was not four times as quick."""
    attempt = finished(tmp_path / "runs/a", tmp_path / "data", 8.0)
    for index in range(5):
        for shard in range(4 * index, 4 * index + 3):
            os.utime(ShardPath(tmp_path / "data/columns/c/r", shard).receipt, (9e8, 9e8))
    found = sizing.attempt_s(attempt, attempt.read())
    assert found == pytest.approx([32.0] * 5)
