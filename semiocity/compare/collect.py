"""What run folders tell about trainings: settings, curves, scores, costs. Standard library only; every part may be
missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import canonical, read_json
from semiocity.launch.identity import flat
from semiocity.launch.progress import gpu_hours
from semiocity.launch.runs import attempts
from semiocity.launch.status_tasks import Read
from semiocity.train.lines import read_metrics

POINTS = 400
"""Most points of a curve; longer ones are averaged in bins."""
LAST_SHARE = 50
"""The final loss is the mean of the last 50th of the steps."""
APART = ("run", "dataset", "image", "wandb", "rehearse", "hang", "sample_prompts")
"""Settings that say nothing about how runs differ in what comes out."""

Curve = list[tuple[float, float]]
"""(step, value)"""


def collect(runs: Sequence[Path]) -> dict[str, Any]:
    """Everything that is compared, as one JSON value: `runs`, `settings` (dotted key -> value by run, of what differs),
    and `warnings` about what must not be compared. UserError for a run without a training."""
    found = [training(run) for run in runs]
    names = [entry["run"] for entry in found]
    settings = differing({entry["run"]: entry.pop("settings") for entry in found})
    return {"runs": found, "settings": settings, "warnings": [*_warnings(found, names)]}


def training(run: Path) -> dict[str, Any]:
    """One training."""
    made = [Read.of(attempt) for attempt in attempts(run) if attempt.file.exists()]
    made = [read for read in made if read.data["kind"] == "train"]
    if not made:
        raise UserError(f"{run}: no training was submitted here; `semiocity status` lists the runs")
    newest = made[-1].data
    progress = _optional(run / "progress.json") or {}
    done = _optional(run / "done.json")
    curves = _curves(run)
    speeds = list(read_metrics(run / "speed.jsonl"))
    job = newest["job"]
    step = int(done["step"] if done else progress.get("step", 0))
    hours = sum(_seconds(read.written.values()) for read in made) / 3600
    gpu = sum(gpu_hours(read.data, read.written.values()) for read in made)
    samples = step * job["global_batch"]
    return {
        "run": run.name,
        "task": job["task"],
        "dataset": Path(newest["dataset"]).name,
        "state": "done" if done else progress.get("state", "not started"),
        "step": step,
        "steps": job["steps"],
        "samples": samples,
        "global_batch": job["global_batch"],
        "loss": _last(curves.get("loss", [])),
        "validation": _best(curves.get("validation/loss", [])),
        "scores": _scores(_optional(run / "scores.json")),
        "protocol": (_optional(run / "scores.json") or {}).get("protocol"),
        "cost": {
            "hours": round(hours, 3),
            "gpu_hours": round(gpu, 3),
            "images_per_s": _median(speeds, "speed/samples_per_s"),
            "images_per_gpu_hour": round(samples / gpu, 1) if gpu else None,
            "tflops_per_gpu": _median(speeds, "speed/tflops_per_gpu"),
            "mfu": _median(speeds, "speed/mfu"),
            "data_wait_share": _median(speeds, "speed/data_wait_share"),
            "memory_gb": max((line["memory/gb"] for line in speeds if "memory/gb" in line), default=None),
            "submissions": len(made),
            "returns": sum(state.get("restart", 0) for read in made for state in read.written.values()),
        },
        "validated": (job.get("validate_split"), job.get("validate_samples")) if job.get("validate_every") else None,
        "settings": {
            **flat(job, APART.__contains__),
            "(columns)": canonical(newest.get("columns") or {}),
            "(code)": _code(newest),
        },
        "curves": {name: thinned(curve) for name, curve in curves.items()},
    }


def _curves(run: Path) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for file, prefix in (("metrics.jsonl", ""), ("validation.jsonl", "validation/"), ("speed.jsonl", "")):
        for line in read_metrics(run / file):
            step = line.pop("step")
            line.pop("time", None)
            for name, value in line.items():
                found.setdefault(prefix + name, []).append((step, value))
    return found


def thinned(curve: Curve, most: int = POINTS) -> Curve:
    """At most so many points: means over equal parts, of values that are finite."""
    finite = [(step, value) for step, value in curve if math.isfinite(value)]
    if len(finite) <= most:
        return finite
    edges = [i * len(finite) // most for i in range(most + 1)]
    parts = [finite[a:b] for a, b in pairwise(edges)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def _last(curve: Curve) -> float | None:
    tail = [value for _, value in curve[-max(len(curve) // LAST_SHARE, 1) :] if math.isfinite(value)]
    return sum(tail) / len(tail) if tail else None


def _best(curve: Curve) -> dict[str, float] | None:
    """The validation loss at the end, and the lowest with its step."""
    finite = [(value, step) for step, value in curve if math.isfinite(value)]
    if not finite:
        return None
    best, step = min(finite)
    return {"last": finite[-1][0], "best": best, "best_step": step, "first": finite[0][0]}


def _scores(scores: Any) -> dict[str, float]:
    """The headline scores of a scores.json."""
    if not isinstance(scores, dict):
        return {}
    wanted = {"miou": "value", "frechet": "value", "kid": "value", "diversity": "value"}
    found = {name: scores.get(name, {}).get(key) for name, key in wanted.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _seconds(written: Iterable[Mapping[str, Any]]) -> float:
    """How long the tasks of an attempt ran, restarts included."""
    return sum(
        facts.get("spent_s", 0.0) + facts["updated"] - facts["started"]
        for facts in written
        if "updated" in facts and "started" in facts
    )


def _median(speeds: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [line[name] for line in speeds if name in line]
    return statistics.median(values) if values else None


def _code(data: Mapping[str, Any]) -> str:
    return Path(data.get("code") or "").name


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key -> value by run, of the keys whose values are not all equal; None where a run has no such key."""
    keys = sorted({key for values in settings.values() for key in values})
    table = {key: {run: values.get(key) for run, values in settings.items()} for key in keys}
    return {key: row for key, row in table.items() if len({canonical(value) for value in row.values()}) > 1}


def _warnings(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterable[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two runs have the name {name}"
    for key, what in (("task", "losses"), ("dataset", "losses and scores")):
        if len({entry[key] for entry in found}) > 1:
            yield f"{what} of different {key}s cannot be compared"
    validated = {canonical(entry["validated"]) for entry in found if entry["validation"]}
    if len(validated) > 1:
        yield "validation losses were taken on other rows (validate_split, validate_samples): they cannot be compared"
    protocols = {canonical(entry["protocol"]) for entry in found if entry["scores"]}
    if len(protocols) > 1:
        yield "scores were measured in different ways (protocol in scores.json): they cannot be compared"
    unfinished = [entry["run"] for entry in found if entry["state"] != "done"]
    if unfinished:
        yield f"not finished: {', '.join(unfinished)}"


def _optional(path: Path) -> Any:
    try:
        return read_json(path)
    except (FileNotFoundError, UserError):
        return None
