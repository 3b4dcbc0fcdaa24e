"""A second run under the same name with other arguments is refused, and the message names what differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Resources
from semiocity.errors import UserError
from semiocity.launch import facts, identity
from semiocity.launch.jobs import Work
from semiocity.launch.runs import new_attempt

JOB: dict[str, Any] = {
    "stage": "caption",
    "args": {"batch": 8, "captioner": "map", "rehearse_slow_batch_s": 0},
    "resources": {},
}


def work(tmp_path: Path) -> Work:
    return Work(
        "stage", tmp_path / "runs/caption-city", tmp_path / "city", JOB, Resources(), column="caption", revision="r1"
    )


def submitted(before: Work, results: bool = True) -> None:
    new_attempt(before.run).write({**facts.of_work(before), "jobs": ["5_0"], "image": None})
    if results:
        folder = before.dataset / "columns/caption/r1/00000"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "00000000.tar").touch()


def other(before: Work, revision: str = "r2", **args: object) -> Work:
    return replace(before, revision=revision, job={**JOB, "args": {**JOB["args"], **args}})


def test_other_arguments_are_named_with_both_values(tmp_path: Path) -> None:
    before = work(tmp_path)
    assert identity.another(before, ()) == {}, "a name that nobody has used is free"
    submitted(before)
    with pytest.raises(UserError) as error:
        identity.refuse_another(other(before, batch=16, captioner="blip2", prompt="a"), ())
    message = str(error.value)
    assert "runs/caption-city is another job" in message
    assert '  args.captioner: "map" -> "blip2"' in message and "  args.batch: 8 -> 16" in message
    assert '  args.prompt: (none) -> "a"' in message
    assert "--set 'run=\"caption-city-2\"'" in message and "--replace" in message


def test_a_run_goes_on_where_the_change_makes_no_other_result(tmp_path: Path) -> None:
    """The second command under the same name is let through, and what it submits is the new settings."""
    for place, change in (
        ("same column", {"revision": "r1", "job": {**JOB, "args": {**JOB["args"], "device": "x"}}}),
        ("rehearsal", {"revision": "r2", "job": {**JOB, "args": {**JOB["args"], "rehearse_slow_batch_s": 3}}}),
        ("more time, and parents that grew", {"revision": "r2", "resources": Resources(timeout_min=5)}),
    ):
        before = work(tmp_path / place)
        submitted(before)
        changed = replace(before, **change)
        assert identity.another(changed, {"5_0"}) == {}, place
        identity.refuse_another(changed, {"5_0"})
        attempt = new_attempt(changed.run)
        attempt.write({**facts.of_work(changed), "jobs": [], "image": None})
        assert facts.work_of(attempt.read(), changed.run, changed.dataset) == changed


def test_the_name_of_a_run_of_which_nothing_came_is_free_once_its_jobs_are_gone(tmp_path: Path) -> None:
    before = work(tmp_path)
    submitted(before, results=False)
    changed = other(before, batch=16)
    assert identity.another(changed, ()) == {}
    assert identity.another(changed, {"5_0"}) == {"args.batch": (8, 16)}, "its job may still make something"
    with pytest.raises(UserError, match=r"args\.batch: 8 -> 16"):
        identity.refuse_another(changed, {"5_0"})


def test_a_work_survives_its_attempt_file(tmp_path: Path) -> None:
    """What `repeat` relies on."""
    before = replace(work(tmp_path), binds=(Path("/a"), Path("/b")), units=3, together=7, columns={"base": "x"})
    submitted(before)
    data = json.loads((before.run / "attempts/0001/attempt.json").read_text())
    assert facts.work_of(data, before.run, before.dataset) == before


PICTURES: dict[str, Any] = {"run": "demo", "dataset": "data/city", "seed": 0, "steps": 20, "tasks": 1, "model": None}


@pytest.mark.parametrize(
    ("kind", "result", "beside"),
    [
        ("generate", "samples/manifest.json", "--set 'model=\"runs/demo/export\"'"),
        ("generate", "samples/key/sample.json", "--set 'model=\"runs/demo/export\"'"),
        ("evaluate", "scores.json", "--set 'samples=\"runs/demo/samples\"'"),
    ],
)
def test_other_pictures_or_scores_do_not_take_the_place_of_those_that_are_there(
    kind: str, result: str, beside: str, tmp_path: Path
) -> None:
    before = Work(kind, tmp_path / "runs/demo", tmp_path / "city", PICTURES, Resources())
    submitted(before, results=False)
    changed = replace(before, job={**PICTURES, "seed": 1})
    assert identity.another(changed, ()) == {}, "nothing came of it"
    place = before.run / result
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    with pytest.raises(UserError) as error:
        identity.refuse_another(changed, ())
    message = str(error.value)
    assert "  seed: 0 -> 1" in message and "add --replace" in message
    assert "--set 'run=\"demo-2\"' " + beside in message
    same = {**PICTURES, "tasks": 4, "dataset": str(tmp_path / "city")}
    assert identity.another(replace(before, job=same, resources=Resources(timeout_min=5)), ()) == {}
    assert identity.another(replace(before, dataset=tmp_path / "town"), ()).keys() == {"dataset"}
    new_attempt(before.run).write({**facts.of_work(changed), "jobs": [], "image": None})
    assert identity.another(changed, ()) == {}, "it took its place, as --replace does"
