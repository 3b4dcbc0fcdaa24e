"""What is done, running, failed and missing: receipts and attempt files first, then one squeue for everything.

Standard library only, so that `semiocity status` starts at once on a login node; works without accounting.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.launch import bad_nodes, causes, ends, held, squeue
from semiocity.launch.compact import packed_states
from semiocity.launch.progress import clock, gpu_hours, measure
from semiocity.launch.runs import Attempt, alive, all_runs, attempts, last_line

GATHER = 100
"""Tasks that have to be done newly before they are gathered in a file."""

STALE_S = 120.0
"""A task on another machine that has not written for so long, and that nobody can ask about, counts as lost."""


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Read:
    """An attempt with what is written of it, read once."""

    attempt: Attempt
    data: dict[str, Any]
    written: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, attempt: Attempt) -> Read:
        data = attempt.read()
        return cls(attempt, data, _task_files(attempt, data["jobs"]))


def task_states(attempt: Attempt, live: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """State of every task of an attempt: done, running, queued, stopped, cancelled, failed or lost (ended without a
    word), and the cause of those that ended without being done.

    `live` is squeue's answer when it was asked; None asks nobody and believes the files.
    """
    return _states(Read.of(attempt), live)


def _states(read: Read, live: Mapping[str, str] | None) -> list[dict[str, Any]]:
    attempt, data = read.attempt, read.data
    found = []
    cancelled = attempt.cancelled.exists()
    logs = _logs(attempt)
    for index in range(max(len(data["tasks"]), len(data["jobs"]))):
        job = data["jobs"][index] if index < len(data["jobs"]) else ""
        facts = read.written.get(index, {})
        state = facts.get("state", "queued")
        if facts and facts.get("job") != job and job and data["executor"] == "local":
            state = "queued"  # brought back a moment ago; the file is still its predecessor's
        if state in ("running", "queued", "stopped"):
            state = _judge(state, job, facts, data, live)
        reason = facts.get("reason") or ""
        log = ""
        if state not in ("done", "queued") and f"{job}_0_log.out" in logs:
            log = str(attempt.logs / f"{job}_0_log.out")
        cause = ""
        if cancelled and state in ("lost", "stopped"):
            state, cause, reason = "cancelled", causes.CANCELLED, ""
        elif state in ("failed", "lost"):
            found_cause = ends.cause(attempt, facts, job)
            cause, reason = found_cause.name, f"{found_cause}; {found_cause.advice}"
        elif state == "stopped":
            cause = causes.of_signal(facts.get("reason"))
        named = {"index": index, "job": job, "state": state, "reason": reason, "cause": cause, "log": log}
        found.append({**facts, **named})
    return found


def _logs(attempt: Attempt) -> set[str]:
    try:
        return set(os.listdir(attempt.logs))  # noqa: PTH208
    except FileNotFoundError:
        return set()


def _task_files(attempt: Attempt, jobs: Sequence[str]) -> dict[int, dict[str, Any]]:
    """What the tasks wrote of themselves, by index.

    Tasks that are done are gathered in one file by whoever looks, so that ten thousand of them are not opened again.
    """
    try:
        names = os.listdir(attempt.folder / "tasks")  # noqa: PTH208
    except FileNotFoundError:
        return {}
    indices = sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())
    gathered = _json(attempt.gathered)
    known = {i: gathered[str(i)] for i in indices if str(i) in gathered}
    # A task that was submitted again has another job, and is not done.
    known = {i: facts for i, facts in known.items() if i < len(jobs) and jobs[i] == facts.get("job")}
    found = known | {i: _json(attempt.task_file(i)) for i in indices if i not in known}
    # Read last: what was packed away since the listing is there.
    packed = packed_states(attempt)
    found = {i: facts for i, facts in found.items() if facts and i not in packed}
    done = {str(i): facts for i, facts in found.items() if facts.get("state") == "done"}
    if len(done) >= len(known) + GATHER:
        with suppress(OSError):  # somebody else's run
            write_json(attempt.gathered, done)
    return found | packed


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (FileNotFoundError, UserError):
        return {}


def _judge(
    state: str, job: str, facts: Mapping[str, Any], data: Mapping[str, Any], live: Mapping[str, str] | None
) -> str:
    """What a task that has not said "done" or "failed" is really doing."""
    if data["executor"] == "slurm":
        if live is None or not job:
            return state
        if job not in live:
            return "lost"
        return "running" if live[job] == "RUNNING" else "queued"
    if not job:
        return "queued"
    if data["host"] == socket.gethostname():
        return state if alive(job) else "lost"
    return state if time.time() - facts.get("updated", 0) < STALE_S else "lost"


def progress_line(attempt: Attempt, tasks: int) -> str:
    """One line on how an attempt stands, for whoever waits for it."""
    read = Read.of(attempt)
    states = _states(read, None)[:tasks]
    progress = training_progress(attempt.run) if read.data["kind"] == "train" else ""
    if not progress:
        counts = Counter(state["state"] for state in states)
        work = measure(read.data, states)
        parts = [f"{work['done']}/{work['of']} shards"] if work["unit"] == "shards" else []
        parts.append(f"{counts['done']}/{tasks} tasks done")
        parts += [f"{counts[name]} {name}" for name in ("running", "queued", "failed") if counts[name]]
        if work["rows_per_s"]:
            parts.append(f"{work['rows_per_s']:.1f} rows/s")
        if work["left_s"] is not None:
            parts.append(f"{clock(work['left_s'])} left")
        progress = ", ".join(parts)
    return f"  {attempt.run.name}: {progress}"


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


def collect(data: Path, runs: Path, only: Sequence[Path] = ()) -> dict[str, Any]:
    """Datasets and runs as one JSON value, or `only` some runs. Asks squeue once, for jobs that files do not settle."""
    found = {run: [a for a in attempts(run) if a.file.exists()] for run in only or all_runs(runs)}
    read = {run: [Read.of(attempt) for attempt in listed] for run, listed in found.items() if listed}
    seen, trouble = _ask_slurm(newest for listed in read.values() for newest in listed)
    listed_runs = [_run(run, listed, seen) for run, listed in read.items()]
    return {
        "datasets": [] if only else datasets(data),
        "runs": listed_runs,
        "gpu_hours": round(sum(run["gpu_hours"] for run in listed_runs), 2),
        "trouble": trouble,
    }


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
    states = _states(newest, None if seen is None else {job: found.state for job, found in seen.items()})
    mine = {job for read in listed for job in read.data["jobs"]}
    kept = held.find({job: found for job, found in (seen or {}).items() if job in mine}, run.name)
    problems = [
        {**{name: s[name] for name in ("state", "reason", "cause", "log")}, "task": s["index"], "last": _last(s["log"])}
        for s in states
        if s["state"] in ("failed", "lost")
    ]
    hours = sum(gpu_hours(read.data, read.written.values()) for read in listed)
    return {
        "run": run.name,
        "kind": data["kind"],
        "dataset": Path(data["dataset"]).name,
        "column": data["column"],
        "executor": data["executor"],
        "jobs": squeue.whole_jobs(job for job in data["jobs"] if job),
        "attempt": newest.attempt.number,
        "restarts": max((state.get("restart", 0) for state in states), default=0),
        "tasks": dict(sorted(Counter(state["state"] for state in states).items())),
        "causes": dict(sorted(Counter(state["cause"] for state in states if state["cause"]).items())),
        "work": measure(data, states),
        "gpu_hours": round(hours, 2),
        "steps": steps_of(data, states),
        "progress": training_progress(run) if (run / "progress.json").exists() else "",
        "problems": problems,
        "held": [{**item._asdict(), "said": str(item)} for item in kept],
        "excluded": bad_nodes.avoided(newest.attempt, data),
    }


def steps_of(data: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a pipeline: each chosen step, whether it was queued, and as what."""
    if data["kind"] != "pipeline":
        return []
    return [
        {"step": step["name"], "state": state["state"], "job": state["job"], "said": state.get("said", "")}
        for step, state in zip(data["job"]["steps"], states)
    ]


def _last(log: str) -> str:
    return last_line(Path(log)) if log else ""


def healthy(facts: Mapping[str, Any]) -> bool:
    """Whether nothing has failed, been lost, or waits for a person."""
    return not any(run["problems"] or any(item["stuck"] for item in run["held"]) for run in facts["runs"])


def busy(facts: Mapping[str, Any]) -> bool:
    """Whether anything is queued or running."""
    return any(run["tasks"].get(state) for run in facts["runs"] for state in ("queued", "running", "stopped"))
