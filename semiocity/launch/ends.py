"""How attempts at tasks ended: notes in the attempt's folder, read as evidence, and what follows from them.

    attempts/0001/ends/JOB.RESTART    lines KEY=VALUE: what a failing task said, then what the batch script saw

Only attempts that did not simply succeed have one. Standard library only.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import causes
from semiocity.launch.causes import Cause, Evidence, cause_of
from semiocity.launch.runs import Attempt, attempts

LOG_BYTES = 16384
BEGINS = "semiocity: begins "
"""How the line in a log begins that an attempt starts with: what is before it, is its predecessor's."""

GUARD_S = 60
"""How long an srun may wait for a step without processes, in seconds."""

_DEADLY = {causes.CRASH, causes.KILLED, causes.OUT_OF_MEMORY, causes.HUNG}


# ---------------------------------------------------------------- the batch script


def setup() -> list[str]:
    """Shell lines before srun: where this attempt's part of the log begins."""
    job = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    return [f'echo "{BEGINS}{job}.${{SLURM_RESTART_COUNT:-0}} on $SLURM_JOB_NODELIST"']


def guard(attempt: Attempt, code: Path, index: str, nodes: int) -> list[str]:
    """Shell lines before srun, beside which the guard runs; `index` is the task's, as the shell reads it.

    Ranks on several nodes do not end at the same moment, so that this node's may be gone for a while.
    """
    script = code / "semiocity" / "launch" / "guard.sh"
    grace_s = GUARD_S if nodes == 1 else 2 * GUARD_S
    words = [str(script), str(attempt.folder)]
    task = [str(attempt.run), str(attempt.number)]
    return [f"bash {shlex.join(words)} $$ {grace_s} {shlex.join(task)} {index} &", "guard=$!"]


def teardown(attempt: Attempt, code: Path, retries: Mapping[str, int], come_back: bool = True) -> list[str]:
    """Shell lines after srun, outside the container: note how it ended, bring the job back if that is right."""
    script = code / "semiocity" / "launch" / "teardown.sh"
    budgets = " ".join(f"{name}={times}" for name, times in retries.items())
    return [
        "rc=$?",
        "trap '' TERM",
        'kill "$guard" 2>/dev/null',
        f'bash {shlex.quote(str(script))} {shlex.quote(str(attempt.folder))} "$rc" '
        f"{'yes' if come_back else 'no'} {budgets}",
        "exit $rc",
    ]


# ---------------------------------------------------------------- notes


def end_file(attempt: Attempt, job: str, restart: int) -> Path:
    """The note of one attempt at a task."""
    return attempt.folder / "ends" / f"{job}.{restart}"


def note(
    attempt: Attempt,
    job: str,
    restart: int,
    cause: str,
    reason: str,
    node: str,
    rank: int = 0,
    again: bool = True,
) -> None:
    """Leave a failing task's own word. Of several ranks the first is the cause; the others' words are its echo.

    Not `again`: it would end the same way, within budget or not.
    """
    facts: dict[str, Any] = {
        "cause": cause,
        "reason": reason,
        "rank": rank,
        "host": node,
        "time": round(time.time()),
    }
    if not again:
        facts["again"] = "no"
    text = "".join(f"{name}={' '.join(str(value).split())}\n" for name, value in facts.items())
    path = end_file(attempt, job, restart)
    with suppress(OSError):  # no room, or there is one: the batch script has eyes of its own
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)


def read(path: Path) -> dict[str, str]:
    """A note's facts; empty when there is none. Of a key that is there twice the first counts."""
    facts: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return facts
    for line in lines:
        name, mark, value = line.partition("=")
        if mark:
            facts.setdefault(name, value)
    return facts


# ---------------------------------------------------------------- what they say


def evidence(attempt: Attempt, facts: Mapping[str, Any], job: str, state: str = "") -> Evidence:
    """All there is on the last attempt at a task. `facts` is its own file, `state` what SLURM remembers of `job`."""
    mine = facts if facts.get("job") == job else {}
    restart = int(mine.get("restart", 0))
    end = read(end_file(attempt, job, restart))
    later = read(end_file(attempt, job, restart + 1))  # it came back, but its task never wrote a word
    if later:
        end, mine = later, {}
    return Evidence(
        started=bool(mine) or bool(end),
        said=end.get("cause", "") or str(mine.get("cause", "")),
        reason=end.get("reason", "") or str(mine.get("reason", "")),
        stopped=mine.get("state") == "stopped",
        code=_number(end.get("code")),
        log=log_end(attempt, job),
        state=state,
        over_budget=_number(end.get("over_budget")),
    )


def cause(attempt: Attempt, facts: Mapping[str, Any], job: str, state: str = "") -> Cause:
    """Why the last attempt at a task ended without having finished."""
    return cause_of(evidence(attempt, facts, job, state))


def log_end(attempt: Attempt, job: str) -> str:
    """The end of rank 0's log, from where the last attempt begins; empty when there is none."""
    try:
        with (attempt.logs / f"{job}_0_log.out").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    before, mark, after = text.rpartition(BEGINS)
    return after.partition("\n")[2] if mark else before or text


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def witness(run: Path) -> Callable[[dict[str, Any]], str | None]:
    """What the batch scripts of a run saw of an earlier owner's end: "crash", "out_of_memory", or None."""

    def ended(owner: dict[str, Any]) -> str | None:
        job = f"{owner.get('job')}_{owner.get('task')}"
        for attempt in reversed(attempts(run)):
            for name in (job, str(owner.get("job"))):
                facts = read(end_file(attempt, name, int(owner.get("restart", 0))))
                if facts.get("cause") in _DEADLY:
                    of_memory = facts["cause"] in (causes.OUT_OF_MEMORY, causes.KILLED)
                    return causes.OUT_OF_MEMORY if of_memory else causes.CRASH
        return None

    return ended


def died_before(attempt: Attempt, job: str, restart: int) -> bool:
    """Whether the attempt before this one at the same job died of something that a row may have done."""
    return restart > 0 and read(end_file(attempt, job, restart - 1)).get("cause") in _DEADLY


# ---------------------------------------------------------------- without SLURM


def interrupted(attempt: Attempt, index: int, job: str) -> bool:
    """Whether a task left because of Ctrl-C."""
    facts = _own(attempt, index, job)
    return facts.get("state") == "stopped" and facts.get("reason") == "SIGINT"


def _own(attempt: Attempt, index: int, job: str) -> dict[str, Any]:
    """A task's own file, if `job` was the last to write it."""
    with suppress(FileNotFoundError, UserError):
        facts: dict[str, Any] = read_json(attempt.task_file(index))
        return facts if facts.get("job") == job else {}
    return {}


def settle(attempt: Attempt, index: int, job: str, restart: int, retries: Mapping[str, int]) -> bool:
    """What the batch script does, for a local task: note how it ended if not well; whether it is to come back.

    `restart` counts the attempts at the task; each of them is a job of its own here.
    """
    facts = _own(attempt, index, job)
    if facts.get("state") == "done":
        return False
    if facts.get("state") in ("failed", "stopped"):
        found = cause_of(evidence(attempt, facts, job))
    else:  # nobody but the kernel, or a person, kills here
        found = cause_of(Evidence(code=-9, log=log_end(attempt, job)))
    note(attempt, job, restart, found.name, found.detail, socket.gethostname())
    again = read(end_file(attempt, job, restart)).get("again") != "no"
    budget = causes.BUDGETS.get(found.name, "none") if again else "none"
    mine = f"task={index}\nbudget={budget}\n"
    notes = (attempt.folder / "ends").iterdir()
    used = 1 + sum(mine in path.read_text(encoding="utf-8", errors="replace") for path in notes)
    over = budget == "none" or used > retries[budget]
    with end_file(attempt, job, restart).open("a", encoding="utf-8") as file:
        file.write(mine + (f"over_budget={retries[budget]}\n" if over and budget != "none" else ""))
    return not over
