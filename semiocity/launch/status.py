"""What is done, running, failed and missing: receipts and attempt files first, then one squeue for everything.

Standard library only, so that `semiocity status` starts at once on a login node; works without accounting.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.launch import ends, squeue
from semiocity.launch.compact import packed_states
from semiocity.launch.runs import Attempt, alive, all_runs, attempts, last_line

GATHER = 100
"""Tasks that have to be done newly before they are gathered in a file."""

STALE_S = 120.0
"""A task on another machine that has not written for so long, and that nobody can ask about, counts as lost."""


# ---------------------------------------------------------------- tasks


def task_states(attempt: Attempt, live: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """State of every task of an attempt: done, running, queued, stopped, failed or lost (killed without a word).

    `live` is squeue's answer when it was asked; None asks nobody and believes the files.
    """
    data = attempt.read()
    found = []
    written = _task_files(attempt, data["jobs"])
    for index in range(max(len(data["tasks"]), len(data["jobs"]))):
        job = data["jobs"][index] if index < len(data["jobs"]) else ""
        facts = written.get(index, {})
        state = facts.get("state", "queued")
        if facts and facts.get("job") != job and job and data["executor"] == "local":
            state = "queued"  # brought back a moment ago; the file is still its predecessor's
        if state in ("running", "queued", "stopped"):
            state = _judge(state, job, facts, data, live)
        reason = facts.get("reason") or ""
        if state in ("failed", "lost"):
            cause = ends.cause(attempt, facts, job)
            reason, facts = f"{cause}; {cause.advice}", {**facts, "cause": cause.name}
        log = "" if state in ("done", "queued") else _log(attempt, job)
        found.append({**facts, "index": index, "job": job, "state": state, "reason": reason, "log": log})
    return found


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
    found = {i: facts for i, facts in found.items() if facts} | packed_states(attempt)
    done = {str(i): facts for i, facts in found.items() if facts.get("state") == "done"}
    if len(done) >= len(known) + GATHER:
        with suppress(OSError):  # somebody else's run
            write_json(attempt.gathered, done)
    return found


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


def _log(attempt: Attempt, job: str) -> str:
    """Path of rank 0's log of a task, empty when there is none yet."""
    log = attempt.submitit / f"{job}_0_log.out"
    return str(log) if job and log.exists() else ""


def progress_line(attempt: Attempt, tasks: int) -> str:
    """One line on how an attempt stands, for whoever waits for it."""
    states = task_states(attempt)[:tasks]
    counts = {name: sum(state["state"] == name for state in states) for name in ("done", "running", "queued", "failed")}
    parts = [f"{counts['done']}/{tasks} tasks done"]
    parts += [f"{counts[name]} {name}" for name in ("running", "queued", "failed") if counts[name]]
    shards = sum(state.get("done_shards", 0) for state in states)
    of = sum(len(shard_list) for shard_list in attempt.read()["tasks"])
    if of:
        parts.insert(0, f"{shards}/{of} shards")
    progress = training_progress(attempt.run) if attempt.read()["kind"] == "train" else None
    if progress:
        parts = [progress]
    return f"  {attempt.run.name}: {', '.join(parts)}"


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
    if facts.get("eta_s") and facts["step"] < facts["steps"]:
        parts.append(f"{_clock(facts['eta_s'])} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
    if merged and merged["revision"] == revision:
        there = wanted = merged["shards"]
    else:
        there, wanted = _receipts(dataset / "columns" / column / revision), _planned(dataset, column, revision, facts)
    current = bool(merged) and merged["revision"] == revision
    return {
        "column": column,
        "revision": revision,
        "current": current,
        "shards": there,
        "of": wanted,
        "rows": merged["rows"] if current else None,
        "tombstones": merged.get("tombstones", {}) if current else {},
    }


def _receipts(folder: Path) -> int:
    """Number of receipts in a column: one listing for each thousand shards, no file is opened."""
    return sum(
        name.name.endswith(".json") and name.name[:8].isdigit()
        for thousand in folder.iterdir()
        if thousand.is_dir()
        for name in os.scandir(thousand)
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


def collect(data: Path, runs: Path) -> dict[str, Any]:
    """Datasets and runs as one JSON value. Asks squeue once, for all jobs that files do not settle."""
    newest = [(run, attempts(run)) for run in all_runs(runs)]
    readable = [(run, [a for a in found if a.file.exists()]) for run, found in newest]
    last = {run: found[-1] for run, found in readable if found}
    live, trouble = _ask_slurm(last.values())
    listed = [_run(run, attempt, live) for run, attempt in last.items()]
    return {"datasets": datasets(data), "runs": listed, "trouble": trouble}


def _ask_slurm(found: Iterable[Attempt]) -> tuple[Mapping[str, str] | None, str]:
    jobs: list[str] = []
    for attempt in found:
        data = attempt.read()
        if data["executor"] == "slurm":
            written = _task_files(attempt, data["jobs"])
            settled = {i for i, facts in written.items() if facts.get("state") in ("done", "failed")}
            jobs += [job for index, job in enumerate(data["jobs"]) if index not in settled]
    try:
        return squeue.states(jobs), ""
    except UserError as error:
        return None, str(error)


def _run(run: Path, attempt: Attempt, live: Mapping[str, str] | None) -> dict[str, Any]:
    data = attempt.read()
    states = task_states(attempt, live)
    counts: dict[str, int] = {}
    for state in states:
        counts[state["state"]] = counts.get(state["state"], 0) + 1
    problems = [
        {"task": s["index"], "state": s["state"], "reason": s["reason"], "log": s["log"], "last": _last(s["log"])}
        for s in states
        if s["state"] in ("failed", "lost")
    ]
    return {
        "run": run.name,
        "kind": data["kind"],
        "dataset": Path(data["dataset"]).name,
        "column": data["column"],
        "executor": data["executor"],
        "jobs": squeue.whole_jobs(job for job in data["jobs"] if job),
        "attempt": attempt.number,
        "restarts": max((state.get("restart", 0) for state in states), default=0),
        "tasks": counts,
        "progress": training_progress(run) if (run / "progress.json").exists() else "",
        "problems": problems,
    }


def _last(log: str) -> str:
    return last_line(Path(log)) if log else ""


def render(facts: Mapping[str, Any]) -> str:
    """The status as text for a person."""
    lines = []
    for dataset in facts["datasets"]:
        rejected = sum(dataset["rejected"].values())
        rows = "not merged yet" if dataset["rows"] is None else f"{dataset['rows']} rows, {rejected} rejected"
        lines.append(f"dataset {dataset['name']}: {rows}")
        for column in dataset["columns"]:
            of = "?" if column["of"] is None else column["of"]
            done = "complete" if column["current"] else "superseded or unfinished"
            dead = sum(column["tombstones"].values())
            note = f", {dead} tombstones" if dead else ""
            lines.append(f"  {column['column']:<12} {column['revision']}  {column['shards']}/{of} shards  {done}{note}")
    for run in facts["runs"]:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(run["tasks"].items()))
        jobs = f" job {', '.join(run['jobs'])}" if run["executor"] == "slurm" and run["jobs"] else ""
        back = f", came back {run['restarts']}x" if run["restarts"] else ""
        lines.append(
            f"run {run['run']} ({run['kind']} of {run['dataset']}, attempt {run['attempt']}{jobs}{back}): {counts}"
        )
        if run["progress"]:
            lines.append(f"  {run['progress']}")
        for problem in run["problems"][:5]:
            lines.append(f"  task {problem['task']} {problem['state']}: {problem['reason']}")
            if problem["log"]:
                lines.append(f"    {problem['last']}\n    {os.path.relpath(problem['log'])}")
        if len(run["problems"]) > 5:
            lines.append(f"  and {len(run['problems']) - 5} more")
    if facts["trouble"]:
        lines.append(f"the queue could not be asked, states are from files alone: {facts['trouble']}")
    return "\n".join(lines) or "nothing here yet: no data/ and no runs/; `make demo` makes both"


def healthy(facts: Mapping[str, Any]) -> bool:
    """Whether nothing has failed or been lost."""
    return not any(run["problems"] for run in facts["runs"])


def show(data: Path, runs: Path, as_json: bool) -> int:
    """Print the status; exit status 0 only when nothing has failed."""
    facts = collect(data, runs)
    print(json.dumps(facts, indent=1, sort_keys=True) if as_json else render(facts))
    return 0 if healthy(facts) else 1
