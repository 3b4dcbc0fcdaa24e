"""What is done, running, failed and missing: receipts and attempt files first, then one squeue for everything.

Standard library only, so that `semiocity status` starts at once on a login node; works without accounting.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import bad_nodes, causes, held, squeue
from semiocity.launch.progress import clock, gpu_hours
from semiocity.launch.runs import all_runs, attempts, last_line
from semiocity.launch.status_tasks import FAILED, UNDER_WAY, Read, current, is_merge


def progress_line(run: Path) -> str:
    """One line on how a run stands, by its files alone, for whoever waits for it."""
    reads = read_all(run)
    progress = training_progress(run) if reads[-1].data["kind"] == "train" else ""
    if not progress:
        now = current(reads, None)
        tasks = [one.state["state"] for one in now.counted if not is_merge(one)]
        counts, work = Counter(tasks), now.work()
        parts = [f"{work['done']}/{work['of']} shards"] if work["unit"] == "shards" else []
        parts.append(f"{counts['done']}/{len(tasks)} tasks done")
        parts += [f"{counts[name]} {name}" for name in ("running", "queued", "failed") if counts[name]]
        if work["rows_per_s"]:
            parts.append(f"{work['rows_per_s']:.1f} rows/s")
        if work["left_s"] is not None:
            parts.append(f"{clock(work['left_s'])} left")
        progress = ", ".join(parts)
    return f"  {run.name}: {progress}"


def training_progress(run: Path) -> str:
    """`step 120/400, loss 0.1234, 21.5 samples/s, 1:23 left`, or empty before the first step."""
    try:
        facts = read_json(run / "progress.json")
    except (FileNotFoundError, UserError):
        return ""
    parts = [f"step {facts['step']}/{facts['steps']}"]
    if facts.get("loss") is not None:
        parts.append(f"loss {facts['loss']:.4f}")
    if facts.get("samples_per_s"):
        parts.append(f"{facts['samples_per_s']:.1f} samples/s")
    if facts.get("mfu"):
        parts.append(f"MFU {facts['mfu']:.0%}")
    if facts.get("eta_s") and facts["step"] < facts["steps"]:
        parts.append(f"{clock(facts['eta_s'])} left")
    return ", ".join(parts)


# ---------------------------------------------------------------- datasets


def datasets(root: Path) -> list[dict[str, Any]]:
    """Every dataset below `root` with its columns: revision, shards there and wanted, rows, rejected, tombstones."""
    found = []
    for folder in sorted(path for path in root.iterdir() if (path / "columns").is_dir()) if root.is_dir() else []:
        try:
            facts = read_json(folder / "manifest.json")
        except FileNotFoundError:
            facts = {"columns": {}}
        columns = [
            _column(folder, name.name, revision.name, facts)
            for name in sorted((folder / "columns").iterdir())
            for revision in sorted(name.iterdir())
            if revision.is_dir() and not revision.name.startswith(".")
        ]
        rejected = facts.get("rejected", {})
        found.append({"name": folder.name, "rows": facts.get("rows"), "rejected": rejected, "columns": columns})
    return found


def _column(dataset: Path, column: str, revision: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    merged = facts["columns"].get(column)
    current = bool(merged) and merged["revision"] == revision
    wanted = merged["shards"] if current else _planned(dataset, column, revision, facts)
    return {
        "column": column,
        "revision": revision,
        "current": current,
        # Counted, also where the manifest knows: a column is complete when its receipts are there.
        "shards": _receipts(dataset / "columns" / column / revision),
        "of": wanted,
        "rows": merged["rows"] if current else None,
        "tombstones": merged.get("tombstones", {}) if current else {},
    }


def _receipts(folder: Path) -> int:
    """Number of receipts in a column: one listing for each thousand shards, no file is opened."""
    return sum(
        name.endswith(".json") and name[:8].isdigit()
        for thousand in os.scandir(folder)
        if thousand.is_dir()
        for name in os.listdir(thousand)  # noqa: PTH208, a fraction of scandir's time
    )


def _planned(dataset: Path, column: str, revision: str, facts: Mapping[str, Any]) -> int | None:
    base = facts["columns"].get("base")
    if column != "base" and base:
        return base["shards"]
    try:
        return read_json(dataset / "plans" / revision / "plan.json")["shards"]
    except (FileNotFoundError, KeyError):
        return None


# ---------------------------------------------------------------- everything

SILENT_S = 600.0
"""A stage's task that has not told of a row for so long is pointed out. The first may have a model to load."""


def collect(data: Path, runs: Path, only: Sequence[Path] = ()) -> dict[str, Any]:
    """Datasets and runs as one JSON value, or `only` some runs. Asks squeue once, for jobs that files do not settle."""
    read = {run: reads for run in only or all_runs(runs) if (reads := read_all(run))}
    seen, trouble = _ask_slurm(newest for listed in read.values() for newest in listed)
    listed_runs = [_run(run, listed, seen) for run, listed in read.items()]
    return {
        "datasets": [] if only else datasets(data),
        "runs": listed_runs,
        "gpu_hours": round(sum(run["gpu_hours"] for run in listed_runs), 2),
        "trouble": trouble,
    }


def read_all(run: Path) -> list[Read]:
    """Every attempt of a run, oldest first."""
    return [Read.of(attempt) for attempt in attempts(run) if attempt.file.exists()]


def _ask_slurm(found: Iterable[Read]) -> tuple[Mapping[str, squeue.Seen] | None, str]:
    jobs: list[str] = []
    for read in found:
        if read.data["executor"] == "slurm":
            settled = {i for i, facts in read.written.items() if facts.get("state") in ("done", "failed")}
            jobs += [job for index, job in enumerate(read.data["jobs"]) if job and index not in settled]
    try:
        return squeue.look(jobs), ""
    except UserError as error:
        return None, str(error)


def _run(run: Path, listed: Sequence[Read], seen: Mapping[str, squeue.Seen] | None) -> dict[str, Any]:
    newest = listed[-1]
    data = newest.data
    now = current(listed, None if seen is None else {job: found.state for job, found in seen.items()})
    told = now.told()
    states = [state for _, state in told]
    mine = {job for read in listed for job in read.data["jobs"]}
    kept = held.find({job: found for job, found in (seen or {}).items() if job in mine}, run.name)
    problems = [
        {
            **{name: state[name] for name in ("state", "reason", "cause", "log")},
            "attempt": read.attempt.number,
            "task": state["index"],
            "last": _last(state["log"]),
        }
        for read, state in told
        if state["state"] in FAILED
    ]
    hours = sum(gpu_hours(read.data, read.written.values()) for read in listed)
    return {
        "run": run.name,
        "kind": data["kind"],
        "dataset": Path(data["dataset"]).name,
        "column": data["column"],
        "executor": data["executor"],
        "jobs": squeue.whole_jobs(job for read in now.reads for job in read.data["jobs"] if job),
        "attempt": newest.attempt.number,
        "attempts": [read.attempt.number for read in now.reads],
        "restarts": max((state.get("restart", 0) for state in states), default=0),
        "tasks": dict(sorted(Counter(state["state"] for state in states).items())),
        "causes": dict(sorted(Counter(state["cause"] for state in states if state["cause"]).items())),
        "work": now.work(),
        "gpu_hours": round(hours, 2),
        "steps": steps_of(data, [state for read, state in told if read is newest]),
        "progress": training_progress(run) if (run / "progress.json").exists() else "",
        "problems": problems,
        "held": [{**item._asdict(), "said": str(item)} for item in kept],
        "silent": [] if seen is None else [item for read, state in told if (item := _silent(read, state))],
        "excluded": {
            node: why for read in now.reads for node, why in bad_nodes.avoided(read.attempt, read.data).items()
        },
    }


def _silent(read: Read, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """A task that should have told of rows long since: SLURM believes that it runs when its controller lost the last
    seconds before a crash, or its node hangs. Trainings find such a rank themselves (train/watchdog.py); merges tell of
    nothing."""
    data = read.data
    tells = data["executor"] == "slurm" and data["kind"] == "stage" and state["index"] != data["merge"]
    if state["state"] != "running" or not tells or not state["log"]:
        return None
    for_s = time.time() - state.get("updated", 0)
    if for_s < SILENT_S:
        return None
    # The file is its predecessor's until a job that came back has got as far as Python; its log begins before that.
    with suppress(FileNotFoundError):  # packed away a moment ago
        for_s = min(for_s, time.time() - Path(state["log"]).stat().st_mtime)
    if for_s < SILENT_S:
        return None
    return {"attempt": read.attempt.number, "task": state["index"], "job": state["job"], "for_s": round(for_s)}


def steps_of(data: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a pipeline: each chosen step, whether it was queued, and as what."""
    if data["kind"] != "pipeline":
        return []
    return [
        {
            "step": step["name"],
            "state": state["state"],
            "job": state["job"],
            "said": state.get("said", "") or ("never queued" if state["cause"] == causes.NEVER_QUEUED else ""),
        }
        for step, state in zip(data["job"]["steps"], states)
    ]


def _last(log: str) -> str:
    return last_line(Path(log)) if log else ""


def healthy(facts: Mapping[str, Any]) -> bool:
    """Whether nothing has failed, been lost, or waits for a person."""
    return not any(run["problems"] or any(item["stuck"] for item in run["held"]) for run in facts["runs"])


def busy(facts: Mapping[str, Any]) -> bool:
    """Whether anything is queued or running."""
    return any(run["tasks"].get(state) for run in facts["runs"] for state in UNDER_WAY)
