"""Arrays have curves in TensorBoard, written without it."""

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from semiocity.files import write_json
from semiocity.launch import events, throughput
from semiocity.launch.runs import Attempt, new_attempt


def test_checksum_is_the_standards() -> None:
    assert events.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert events.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def array(run: Path) -> Attempt:
    attempt = new_attempt(run)
    tasks = [[0, 1], [2, 3], [4, 5]]
    attempt.write(
        {"kind": "stage", "executor": "slurm", "tasks": tasks, "merge": None, "jobs": ["1_0", "1_1", "1_2"], "job": {}}
    )
    return attempt


def curves(attempt: Attempt) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(attempt.run / "tb" / "stage-0001"))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_the_past_is_filled_in_once_and_the_present_added(tmp_path: Path) -> None:
    attempt = array(tmp_path / "caption-city")
    began = time.time() - 1000
    assert not throughput.record(attempt), "nothing has begun"
    write_json(attempt.task_file(0), {"state": "done", "job": "1_0", "started": began, "updated": began + 100})
    write_json(attempt.task_file(1), {"state": "failed", "job": "1_1", "started": began, "updated": began + 300})
    running = {"state": "running", "job": "1_2", "started": began, "rows_per_s": 12.5, "done_shards": 1}
    write_json(attempt.task_file(2), {**running, "updated": began + 400})
    live = {"1_2": "RUNNING"}
    assert throughput.record(attempt, live, now=began + 500)
    assert throughput.record(attempt, live, now=began + 510), "nothing is new"
    found = curves(attempt)
    assert found["array/shards_done"] == [(100, 2.0), (300, 2.0), (500, 3.0)]
    assert found["array/failed"] == [(100, 0.0), (300, 1.0), (500, 1.0)]
    assert found["array/rows_per_s"] == [(500, 12.5)]
    write_json(attempt.task_file(2), {**running, "state": "done", "done_shards": 2, "updated": began + 600})
    assert throughput.record(attempt, {}, now=began + 700)
    assert curves(attempt)["array/shards_done"][3:] == [(600, 4.0), (700, 4.0)]
    assert not (attempt.run / "tb" / "stage-0001" / ".writer.lease").exists()


def test_an_array_that_another_one_was_queued_beside_goes_on_being_recorded(tmp_path: Path) -> None:
    first = array(tmp_path / "a")
    say = {"state": "running", "started": 1.0, "updated": 2.0}
    write_json(first.task_file(0), {**say, "job": "1_0"})
    second = array(tmp_path / "a")
    for live, count in (([], 1), (["1_0"], 2)):
        second.write({**second.read(), "jobs": ["2_0", "2_1", "2_2"], "live": live})
        write_json(second.task_file(0), {**say, "job": "2_0"})
        assert throughput.record_all(tmp_path) == count


def test_a_broken_run_does_not_keep_the_others_from_the_board(tmp_path: Path) -> None:
    attempt = array(tmp_path / "a")
    write_json(attempt.task_file(0), {"state": "done", "job": "1_0", "started": 1.0, "updated": 2.0})
    new_attempt(tmp_path / "b").file.write_text("{")
    assert throughput.record_all(tmp_path) == 1


def test_many_tasks_make_few_points() -> None:
    states = [{"state": "done", "updated": float(i)} for i in range(10_000)]
    points = throughput.past({"tasks": [[i] for i in range(10_000)]}, states, since=-1.0, until=1e9)
    assert len(points) <= throughput.POINTS + 1
    assert points[-1][1]["array/shards_done"] == pytest.approx(10_000)
