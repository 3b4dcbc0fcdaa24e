"""A sweep: one training for every combination of some settings, each a run of its own under a common prefix.

    runs/PREFIX--lr-0.0001--seed-0

Every combination is checked before the first is queued. Each run is queued, comes back, is retried and goes on like any
other; those that are complete are skipped. `resources.array_parallelism` is how many run at the same time: the others
wait, in SLURM's queue, for one before them to end.
"""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.config import Cluster, canonical
from semiocity.errors import UserError
from semiocity.launch import identity, jobs, queued, submission
from semiocity.launch.follow import Interrupted, failure, follow_slurm
from semiocity.launch.jobs import Work
from semiocity.launch.runs import SWEEP, attempts

MOST_NAME = 200
"""Characters of a run's name; file systems end at 255 bytes."""
MOST_RUNS = 1000


@dataclass(frozen=True)
class Axis:
    """A setting and its values."""

    key: str
    values: tuple[Any, ...]


def axis(text: str) -> Axis:
    """`KEY=VALUE,VALUE` as an axis; values are read as TOML, and what is no TOML value is a plain string. UserError."""
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not values.strip() or not all(part.strip() for part in key.split(".")):
        raise UserError(f"--sweep {text}: expected KEY=VALUE,VALUE with a dotted key, such as --sweep seed=0,1")
    if key in ("run", "dataset", "task"):
        raise UserError(f"--sweep {text}: {key} cannot be swept; runs are named after the settings that differ")
    try:
        found = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        found = [_value(part.strip()) for part in values.split(",")]
    written = [canonical(value) for value in found]
    if again := sorted({value for value in written if written.count(value) > 1}):
        raise UserError(f"--sweep {text}: {again[0]} is there twice")
    return Axis(key, tuple(found))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def plan(job_file: Path, sets: Sequence[str], sweeps: Sequence[str]) -> list[Work]:
    """The work of every combination, in the order of the axes, all of it checked. UserError that names every
    combination that is wrong."""
    axes = [axis(text) for text in sweeps]
    keys = [found.key for found in axes]
    if again := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"--sweep: {again[0]} is there twice; write all its values in one, {again[0]}=VALUE,VALUE")
    combinations = list(itertools.product(*(found.values for found in axes)))
    if len(combinations) > MOST_RUNS:
        raise UserError(f"--sweep: {len(combinations)} combinations; at most {MOST_RUNS} are queued at once")
    works: list[Work] = []
    faults: list[str] = []
    for values in combinations:
        chosen = list(zip(keys, values))
        try:
            works.append(_combination(job_file, sets, chosen))
        except UserError as error:
            faults.append("\n".join([f"{_spell(chosen)}:", *(f"  {line}" for line in str(error).splitlines())]))
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise UserError(
            "\n".join(
                [f"{len(faults)} of {len(combinations)} combinations are wrong; none was queued", *faults[:5], *more]
            )
        )
    names = [work.run.name for work in works]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--sweep: two combinations have the name {again[0]}; their values differ in signs alone")
    return works


def _combination(job_file: Path, sets: Sequence[str], chosen: Sequence[tuple[str, Any]]) -> Work:
    own = [f"{key}={_toml(value)}" for key, value in chosen]
    plain = jobs.train(job_file, [*sets, *own])
    name = name_of(plain.run.name, chosen)
    if len(name) > MOST_NAME:
        raise UserError(
            f'the name {name[:60]}… has {len(name)} characters, most is {MOST_NAME}; a shorter --set run="…"'
        )
    return jobs.train(job_file, [*sets, *own, f'run="{name}"'])


def _toml(value: Any) -> str:
    """A value as `--set` reads it. TOML's values that can be swept are JSON's, but for dates and tables."""
    if isinstance(value, bool | int | float | str | list):
        return canonical(value)
    raise UserError(f"{value!r}: tables and dates cannot be swept; name a key inside, such as optimizer.lr")


def name_of(prefix: str, chosen: Sequence[tuple[str, Any]]) -> str:
    """The run's name. A key is shortened to its last part where that is clear."""
    keys = [key for key, _ in chosen]
    last = [key.rpartition(".")[2] for key in keys]
    short = [end if last.count(end) == 1 else key.replace(".", "-") for key, end in zip(keys, last)]
    return SWEEP.join([prefix, *(f"{key}-{_slug(value)}" for key, (_, value) in zip(short, chosen))])


def _slug(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical(value)
    text = re.sub(r"^-", "minus", text)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-") or "empty"


def _spell(chosen: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={canonical(value)}" for key, value in chosen)


def run(job_file: Path, sets: Sequence[str], sweeps: Sequence[str], cluster: Cluster, *, wait: bool, dry: bool) -> int:
    """Plan, check and queue a sweep, or run it here one after the other. Exit status 0 when all is queued, or done.

    What finds no room in the queue, or fails here, does not keep the others from being tried; the same command goes on.
    """
    works = plan(job_file, sets, sweeps)
    _check(works, cluster)
    prefix = works[0].run.name.partition(SWEEP)[0]
    print(f"sweep {prefix}: {len(works)} runs")
    if dry:
        for work in works:
            print(f"  {work.run.name}{'  (complete)' if submission.complete(work) else ''}")
        print("\nthe first of them:\n")
        submission.submit(works[0], cluster, dry_run=True)
        return 0
    if cluster.executor == "local":
        left = _run_here(works, cluster)
    else:
        left = _queue(works, cluster)
        if wait:
            left = _follow(works)
    followed = wait or cluster.executor == "local"
    if left:
        print(f"{len(left)} of {len(works)} runs are not {'complete' if followed else 'queued'}:", file=sys.stderr)
        for line in left:
            print(f"  {line}", file=sys.stderr)
    print(f"`semiocity status {prefix}` and `semiocity compare {prefix}` show them")
    return 1 if left else 0


def _check(works: Sequence[Work], cluster: Cluster) -> None:
    """What is refused before the first is queued. UserError that names the run."""
    asked: set[str] = set()
    for work in works:
        try:
            image = submission.check(work, cluster)
            identity.refuse_another(work, ())
            request = work.resources.model_dump_json()
            if cluster.executor == "slurm" and request not in asked:
                asked.add(request)
                submission.refuse_request(work, cluster, image)
        except UserError as error:
            raise UserError(f"{work.run.name}: {error}\nnone was queued") from None


def _queue(works: Sequence[Work], cluster: Cluster) -> list[str]:
    """Queue what is neither complete nor under way. Returns a line for each that could not be."""
    lanes: deque[str] = deque([""] * works[0].resources.array_parallelism)
    left = []
    for work in works:
        if held := _job(work):
            print(f"{work.run.name}: already queued or running (job {held})")
        else:
            try:
                submission.submit(work, cluster, after=(lanes[0],) if lanes[0] else ())
            except UserError as error:
                left.append(f"{work.run.name}: {error}")
                continue
        if job := held or _job(work):
            lanes[0] = job
            lanes.rotate(-1)
    return left


def _job(work: Work) -> str:
    """The job of a run that is queued or running; empty when there is none."""
    if not attempts(work.run) or submission.complete(work):
        return ""
    return next(iter(queued.under_way(work).queued), "")


def _follow(works: Sequence[Work]) -> list[str]:
    """Wait until nothing of the sweep is in the queue. Returns a line for each run that is not complete then."""
    jobs = [job for work in works if (job := _job(work))]
    if jobs:
        for _ in follow_slurm(jobs):
            pass
    left = []
    for work in works:
        if not submission.complete(work):
            made = [attempt for attempt in attempts(work.run) if attempt.file.exists()]
            left.append(failure(made[-1], work) if made else f"{work.run.name}: was not queued")
    return left


def _run_here(works: Sequence[Work], cluster: Cluster) -> list[str]:
    """Run each to its end, one after the other. Returns a line for each that is not complete."""
    left = []
    for work in works:
        try:
            submission.submit(work, cluster, wait=True)
        except Interrupted:
            raise
        except UserError as error:
            left.append(f"{work.run.name}: {error}")
    return left
