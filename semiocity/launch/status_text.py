"""The status for a person: lines, bars, and a screen that is drawn again and again. Standard library only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiocity.data import rejects
from semiocity.launch import status
from semiocity.launch.progress import clock

BAR = 24
MOST = 5
"""Tasks that are named, of those with a problem."""
WORDS = {
    "preemption": "preempted",
    "time_limit": "time limit",
    "out_of_memory": "out of memory",
    "gpu_out_of_memory": "out of GPU memory",
    "node_failure": "node failure",
    "bad_node": "bad node",
    "never_started": "never started",
    "never_queued": "never queued",
}
CLEAR, HOME, TO_END, HIDE, SHOW = "\033[2J", "\033[H", "\033[J", "\033[?25l", "\033[?25h"


def render(facts: Mapping[str, Any]) -> str:
    """The status as text."""
    lines = []
    for dataset in facts["datasets"]:
        rejected = rejects.counted(dataset["rejected"])
        rows = "not merged yet" if dataset["rows"] is None else f"{dataset['rows']} rows, {rejected}"
        lines.append(f"dataset {dataset['name']}: {rows}")
        for column in dataset["columns"]:
            of = "?" if column["of"] is None else column["of"]
            done = "complete" if column["current"] else "superseded or unfinished"
            if column["current"] and column["shards"] != column["of"]:
                done = "its job makes those that are missing"
            dead = sum(column["tombstones"].values())
            note = f", {dead} tombstones" if dead else ""
            lines.append(f"  {column['column']:<12} {column['revision']}  {column['shards']}/{of} shards  {done}{note}")
    for run in facts["runs"]:
        lines += _run(run)
    if facts["gpu_hours"]:
        lines.append(f"GPU-hours in all: {facts['gpu_hours']:.1f}")
    if facts["trouble"]:
        lines.append(f"the queue could not be asked, states are from files alone: {facts['trouble']}")
    return "\n".join(lines) or "nothing here yet: no data/ and no runs/; `make demo` makes both"


def _run(run: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in run["tasks"].items())
    jobs = f" job {', '.join(run['jobs'])}" if run["executor"] == "slurm" and run["jobs"] else ""
    back = f", came back {run['restarts']}x" if run["restarts"] else ""
    hours = f", {run['gpu_hours']:.1f} GPU-hours" if run["gpu_hours"] else ""
    several = len(run["attempts"]) > 1

    def which(item: Mapping[str, Any]) -> str:
        return f"attempt {item['attempt']}, " if several else ""

    tries = f"attempts {', '.join(map(str, run['attempts']))}" if several else f"attempt {run['attempt']}"
    head = f"{run['kind']} of {run['dataset']}, {tries}{jobs}{back}{hours}"
    lines = [f"run {run['run']} ({head}): {counts}"]
    if run["tasks"].get("running") or run["tasks"].get("queued"):
        if run["progress"]:
            lines.append(f"  {run['progress']}")
        elif run["kind"] != "pipeline":
            lines.append(f"  {_bar(run['work'])}")
    elif run["progress"]:
        lines.append(f"  {run['progress']}")
    for step in run["steps"]:
        waits = f"waits (job {step['job']})" if step["state"] == "queued" else step["said"] or step["state"]
        lines.append(f"  {step['step']:<12} {waits}")
    if run["causes"]:
        named = ", ".join(f"{count} {WORDS.get(cause, cause)}" for cause, count in run["causes"].items())
        lines.append(f"  ended without being done: {named}")
    lines += [f"  {item['said']}" for item in run["held"]]
    for item in run["silent"][:MOST]:
        lines.append(
            f"  {which(item)}task {item['task']} has written nothing for {clock(item['for_s'])}, though it runs, SLURM "
            f"says; if it stays so: scancel {item['job']}, then semiocity retry {run['run']}"
        )
    if len(run["silent"]) > MOST:
        lines.append(f"  and {len(run['silent']) - MOST} more, silent for as long")
    lines += [f"  keeps away from {node}: {why}" for node, why in sorted(run["excluded"].items())]
    for problem in run["problems"][:MOST]:
        lines.append(f"  {which(problem)}task {problem['task']} {problem['state']}: {problem['reason']}")
        if problem["log"]:
            lines.append(f"    {problem['last']}\n    {os.path.relpath(problem['log'])}")
    if len(run["problems"]) > MOST:
        lines.append(f"  and {len(run['problems']) - MOST} more; `semiocity logs {run['run']}`")
    return lines


def _bar(work: Mapping[str, Any]) -> str:
    """`[████████░░░░]  67 %  40/60 shards, 12.3 rows/s, 4:10 left`"""
    full, empty = ("█", "░") if "utf" in (sys.stdout.encoding or "").lower() else ("#", ".")
    filled = int(BAR * work["share"])
    parts = [f"{work['done']}/{work['of']} {work['unit']}"]
    if work["rows_per_s"]:
        parts.append(f"{work['rows_per_s']:.1f} rows/s")
    if work["left_s"] is not None:
        parts.append(f"{clock(work['left_s'])} left")
    return f"[{full * filled}{empty * (BAR - filled)}] {work['share']:4.0%}  {', '.join(parts)}"


def show(data: Path, runs: Path, only: Sequence[Path], as_json: bool) -> int:
    """Print the status; exit status 0 only when nothing has failed."""
    facts = status.collect(data, runs, only)
    print(json.dumps(facts, indent=1, sort_keys=True) if as_json else render(facts))
    return 0 if status.healthy(facts) else 1


def watch(data: Path, runs: Path, only: Sequence[Path], as_json: bool, every_s: float) -> int:
    """Print the status again and again until nothing is queued or running any more, or until Ctrl-C.

    On a terminal the same screen is drawn anew; elsewhere what has changed is printed below, as JSON a line each time.
    Exit status 0 only when nothing has failed.
    """
    terminal = sys.stdout.isatty() and not as_json
    before = None
    try:
        if terminal:
            print(HIDE + CLEAR, end="")
        while True:
            facts = status.collect(data, runs, only)
            if terminal:
                print(screen(f"{render(facts)}\n{time.strftime('%H:%M:%S')}, Ctrl-C ends watching"), end="", flush=True)
            elif as_json:
                print(json.dumps(facts, sort_keys=True), flush=True)
            elif (text := render(facts)) != before:
                print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n", flush=True)
                before = text
            if not status.busy(facts):
                break
            time.sleep(every_s)
    except KeyboardInterrupt:
        pass  # the jobs go on
    finally:
        if terminal:
            print(SHOW)
    return 0 if status.healthy(facts) else 1


def screen(text: str, size: tuple[int, int] | None = None) -> str:
    """What draws `text` anew on a terminal of `size` (columns, lines): no line is wrapped, what is too long is cut."""
    columns, height = size or shutil.get_terminal_size()
    lines = text.splitlines()
    if len(lines) > height - 1:
        hidden = len(lines) - (height - 3)
        lines = [*lines[: height - 3], f"… {hidden - 1} more lines: make the window higher, or name a run", lines[-1]]
    cut = [line if len(line) <= columns else f"{line[: columns - 1]}…" for line in lines]
    return HOME + "".join(f"{line}\033[K\n" for line in cut) + TO_END
