"""Why an attempt at a task ended: one pure function from evidence to a named cause, and what to do about each.

The evidence comes from several witnesses: the task's own file, the note of the batch script (`teardown.sh`, outside the
container, so that it outlives what kills the task), the end of the log, and what SLURM still remembers. Each may be
missing. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

PREEMPTION = "preemption"
TIME_LIMIT = "time_limit"
CRASH = "crash"
OUT_OF_MEMORY = "out_of_memory"
GPU_OUT_OF_MEMORY = "gpu_out_of_memory"
NODE_FAILURE = "node_failure"
BAD_NODE = "bad_node"
HUNG = "hung"
CANCELLED = "cancelled"
NEVER_STARTED = "never_started"
NEVER_QUEUED = "never_queued"
REFUSED = "refused"
KILLED = "killed"
LOST = "lost"

WHAT: dict[str, str] = {
    PREEMPTION: "preempted",
    TIME_LIMIT: "reached its time limit",
    CRASH: "crashed",
    OUT_OF_MEMORY: "ran out of memory",
    GPU_OUT_OF_MEMORY: "ran out of GPU memory",
    NODE_FAILURE: "its node failed",
    BAD_NODE: "its node lacks what the job needs",
    HUNG: "hung",
    CANCELLED: "cancelled",
    NEVER_STARTED: "never started",
    NEVER_QUEUED: "never queued: its submission broke off",
    REFUSED: "refused to go on",
    KILLED: "killed without a word, as by lack of memory",
    LOST: "ended without a word",
}
"""Cause → what happened, for people."""

ADVICE: dict[str, str] = {
    PREEMPTION: "the same command goes on where it was",
    TIME_LIMIT: "the same command goes on where it was; ask for more resources.timeout_min, or a larger signal_delay_s "
    "when one unit of work outlasts it",
    CRASH: "its log's end says why; mend that, then the same command makes what is missing",
    OUT_OF_MEMORY: "ask for more resources.mem_gb, or lower the batch, then run the same command again",
    GPU_OUT_OF_MEMORY: "lower the batch, or see `semiocity fit`, then run the same command again",
    NODE_FAILURE: "the same command makes what is missing, elsewhere",
    BAD_NODE: "tell the site about the node; the same command makes what is missing, elsewhere",
    HUNG: "its log holds the stacks of all threads; the same command makes what is missing",
    CANCELLED: "the same command makes what is missing",
    NEVER_STARTED: "`squeue` or `sacct -j JOB` may say why; run the same command again",
    NEVER_QUEUED: "the same command, or `semiocity retry RUN`, queues what is missing",
    REFUSED: "mend what it names, then run the same command again",
    KILLED: "ask for more resources.mem_gb, or lower the batch, then run the same command again",
    LOST: "`sacct -j JOB` may say why; the same command makes what is missing",
}
"""Cause → what to do."""

BUDGETS: dict[str, str] = {
    PREEMPTION: "preemption",
    TIME_LIMIT: "time_limit",
    CRASH: "crash",
    HUNG: "hung",
    KILLED: "crash",
    OUT_OF_MEMORY: "out_of_memory",
    GPU_OUT_OF_MEMORY: "out_of_memory",
    NODE_FAILURE: "node_failure",
    BAD_NODE: "node_failure",
}
"""Cause → key of `[retries]` that says how often a job may come back after it. The others never come back."""

_STATES: dict[str, str] = {
    "PREEMPTED": PREEMPTION,
    "TIMEOUT": TIME_LIMIT,
    "DEADLINE": TIME_LIMIT,
    "OUT_OF_MEMORY": OUT_OF_MEMORY,
    "NODE_FAIL": NODE_FAILURE,
    "BOOT_FAIL": NODE_FAILURE,
    "CANCELLED": CANCELLED,
    "REVOKED": CANCELLED,
}
_OF_MEMORY = re.compile(r"oom[-_]kill|Out Of Memory")
_OF_THE_STEP = {
    "DUE TO TIME LIMIT": TIME_LIMIT,
    "DUE TO PREEMPTION": PREEMPTION,
    "DUE TO NODE FAILURE": NODE_FAILURE,
}
_HUNG = re.compile(r"^Timeout \(.*\)!", re.MULTILINE)  # faulthandler's
_FATAL = re.compile(r"^Fatal Python error: (.*)", re.MULTILINE)  # faulthandler's, too
_CANCELLED = re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT \S+ \*\*\*")  # a step's says nothing: preemption, too
_SIGNALS = {"SIGUSR2": TIME_LIMIT, "SIGTERM": PREEMPTION, "SIGINT": CANCELLED}
_KILLS = {137, 9, -9}


class Cause(NamedTuple):
    name: str
    """One of the constants above."""
    detail: str
    """The error's last line, the signal, or the like; may be empty."""

    def __str__(self) -> str:
        return f"{WHAT[self.name]}: {self.detail}" if self.detail else WHAT[self.name]

    @property
    def advice(self) -> str:
        return ADVICE[self.name]


def of_signal(name: str | None) -> str:
    """The cause of a stop, from the name of the signal that told of it."""
    return _SIGNALS.get(name or "", PREEMPTION)


@dataclass(frozen=True)
class Evidence:
    """What is known of an attempt that ended without having finished."""

    started: bool = True
    """Whether the task wrote its file."""
    said: str = ""
    """The cause in the task's own word, or the batch script's."""
    reason: str = ""
    """In the task's own words: the error, or the signal that it was stopped by."""
    stopped: bool = False
    """The task saved, and left because it was told to."""
    code: int | None = None
    """Exit code that the batch script, or the local executor, saw; negative or 128 + n for a signal."""
    log: str = ""
    """The end of the log, where SLURM writes too."""
    state: str = ""
    """What SLURM remembers of the job, from squeue, scontrol or sacct."""
    over_budget: int | None = None
    """The budget that was used up, when the job was not brought back for that."""


def cause_of(evidence: Evidence) -> Cause:
    """The cause of an attempt's end. The nearest witness counts most, a guess from an exit code least."""
    name = _name(evidence)
    detail = evidence.reason
    if not detail and name == CRASH:
        found = _FATAL.search(evidence.log)
        detail = found[1] if found else _signal(evidence.code) or _last_line(evidence.log)
    if not detail and name in (REFUSED, BAD_NODE):
        detail = _last_line(evidence.log)
    if evidence.over_budget is not None and name in BUDGETS:
        budget = f"retries.{BUDGETS[name]} = {evidence.over_budget} is used up"
        detail = f"{detail}; {budget}" if detail else budget
    return Cause(name, detail)


def _name(evidence: Evidence) -> str:
    state = evidence.state.partition(" ")[0].rstrip("+")  # "CANCELLED by 1000"
    if evidence.said in WHAT:
        return evidence.said
    if evidence.stopped:
        cancelled = evidence.code is None and _CANCELLED.search(evidence.log)
        return CANCELLED if cancelled or state == "CANCELLED" else of_signal(evidence.reason)
    if not evidence.started and evidence.code is None:
        return {"NODE_FAIL": NODE_FAILURE, "BOOT_FAIL": NODE_FAILURE}.get(state, NEVER_STARTED)
    if state in _STATES:
        return _STATES[state]
    for words, name in _OF_THE_STEP.items():
        if words in evidence.log:
            return name
    if _OF_MEMORY.search(evidence.log):
        return OUT_OF_MEMORY
    if _FATAL.search(evidence.log):
        return CRASH
    if evidence.code is None:
        return CANCELLED if _CANCELLED.search(evidence.log) else LOST
    if evidence.code == 255 and "FATAL:" in evidence.log:
        return BAD_NODE
    if evidence.code in _KILLS:
        return KILLED
    return HUNG if _HUNG.search(evidence.log) else CRASH


def _signal(code: int | None) -> str:
    import signal

    number = -code if code is not None and code < 0 else (code or 0) - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines()]
    ours = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd", "semiocity: ended by"))]
    return ours[-1] if ours else ""
