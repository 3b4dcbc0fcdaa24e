"""Few files: what tasks that are done wrote, state and logs, goes into two files of the attempt.

A task makes two files, its state and its log. When an attempt is over, those of tasks that did their work are put
together in `packed.json` and `logs/done.log`; whatever failed keeps its own. Standard library only.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity import ranks
from semiocity.errors import UserError
from semiocity.files import read_json, replacing, sweep, write_json
from semiocity.launch.runs import Attempt

DONE_LOG = "done.log"
HEAD = "==> {} <==\n"
LOG = re.compile(r"(.+)_\d+_log\.out")
"""JOB_RANK_log.out; the job may be a task of an array, `123_4`."""


def packed_states(attempt: Attempt) -> dict[int, dict[str, Any]]:
    """What tasks wrote whose own files are packed away, by index."""
    try:
        return {int(index): facts for index, facts in read_json(attempt.packed).items()}
    except (FileNotFoundError, UserError):
        return {}


def compact(attempt: Attempt) -> int:
    """Pack the files of the attempt's tasks that are done; returns how many. What killed tasks left half-written goes.

    The attempt is over, and nobody else may be packing.

    What is packed is on disk before the single files go, so that a reader finds it in one place or the other.
    """
    data = attempt.read()
    if data["executor"] == "slurm" or data.get("host") == socket.gethostname():  # others may be at it elsewhere
        meetings = [folder for *_, folder in ranks.restarts(attempt.folder)]
        for folder in (attempt.folder, attempt.folder / "tasks", *meetings):
            sweep(folder)
    try:
        paths = sorted(path for path in (attempt.folder / "tasks").iterdir() if path.stem.isdigit())
    except FileNotFoundError:
        return 0
    done = {}
    for path in paths:
        with suppress(FileNotFoundError, UserError):
            facts = read_json(path)
            if facts.get("state") == "done":
                done[path] = facts
    if not done:
        return 0
    by_job = _logs(attempt)
    logs = [log for facts in done.values() for log in by_job.get(str(facts.get("job", "")), ())]
    _pack_logs(attempt.logs / DONE_LOG, logs)
    states = packed_states(attempt) | {int(path.stem): facts for path, facts in done.items()}
    write_json(attempt.packed, {str(index): states[index] for index in sorted(states)})
    for path in [*done, *logs]:
        path.unlink(missing_ok=True)
    attempt.gathered.unlink(missing_ok=True)
    return len(done)


def _logs(attempt: Attempt) -> dict[str, list[Path]]:
    """Job id → logs of its ranks, from one look at the folder."""
    found: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(attempt.logs)):  # noqa: PTH208
        if match := LOG.fullmatch(name):
            found.setdefault(match[1], []).append(attempt.logs / name)
    return found


def _pack_logs(target: Path, logs: list[Path]) -> None:
    with replacing(target) as file:
        with suppress(FileNotFoundError):
            file.write(target.read_bytes())
        for log in logs:
            file.write(HEAD.format(log.name).encode())
            text = log.read_bytes()
            file.write(text if text.endswith(b"\n") or not text else text + b"\n")


def packed_log(attempt: Attempt, job: str, rank: int = 0) -> str:
    """The log of a task that is done and packed away; empty when there is none."""
    try:
        text = (attempt.logs / DONE_LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    parts = re.split(r"^==> (\S+_log\.out) <==\n", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2]))
    return found.get(f"{job}_{rank}_log.out", "")
