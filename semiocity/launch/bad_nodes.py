"""Nodes on which a run's tasks fail while they succeed on others: the next submission keeps away from them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.launch import causes
from semiocity.launch.ends import read
from semiocity.launch.runs import Attempt, attempts

DAY_S = 86_400.0
"""What happened longer ago may have been mended."""
OFTEN = 2
"""Failures on a node that are no accident, when tasks succeeded elsewhere and none on it."""

_OF_THE_NODE = {causes.CRASH, causes.KILLED, causes.OUT_OF_MEMORY, causes.HUNG, causes.NODE_FAILURE}


class Failed(NamedTuple):
    node: str
    cause: str
    time_s: float


def bad_nodes(failed: Iterable[Failed], done: Counter[str], now_s: float) -> dict[str, str]:
    """Node → why it is to be avoided. `done` counts tasks that succeeded, by node.

    A node that says itself that it lacks something is bad at once. Never more than half of the nodes that were seen:
    what fails everywhere is no node's fault.
    """
    recent = [entry for entry in failed if now_s - entry.time_s < DAY_S]
    lacking = Counter(entry.node for entry in recent if entry.cause == causes.BAD_NODE)
    failing: dict[str, Counter[str]] = {}
    for entry in recent:
        if entry.cause in _OF_THE_NODE:
            failing.setdefault(entry.node, Counter())[entry.cause] += 1
    found = {
        node: f"{counts.total()} tasks failed there ({', '.join(sorted(counts))}), none succeeded"
        for node, counts in sorted(failing.items(), key=lambda item: (-item[1].total(), item[0]))
        if counts.total() >= OFTEN and not done[node] and done.total()
    }
    found = {node: f"{times}x it lacked what the job needs" for node, times in lacking.most_common()} | found
    seen = {*done, *(entry.node for entry in recent)}
    return dict(list(found.items())[: len(seen) // 2]) if len(seen) > 1 else {}


def of_run(run: Path) -> dict[str, str]:
    """Node → why the next attempt of a run is to avoid it. Looks at notes of failures first; most runs have none."""
    failed: list[Failed] = []
    for attempt in attempts(run):
        folder = attempt.folder / "ends"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            facts = read(path)
            node = facts.get("host") or facts.get("nodes", "")
            if node and "[" not in node and "," not in node:
                failed.append(Failed(node, facts.get("cause", ""), path.stat().st_mtime))
    if not {entry.cause for entry in failed} & {*_OF_THE_NODE, causes.BAD_NODE}:
        return {}
    return bad_nodes(failed, _done(run), time.time())


def avoided(attempt: Attempt, data: Mapping[str, Any]) -> dict[str, str]:
    """Node → why jobs of an attempt keep away from it: from its submission on, or since one of them came back."""
    found: dict[str, str] = dict(data.get("excluded") or {})
    try:
        lines = attempt.avoided.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for node, _, cause in (line.partition("\t") for line in lines):
        found.setdefault(node, f"a task that came back: {causes.WHAT.get(cause, cause)}")
    return found


def _done(run: Path) -> Counter[str]:
    from semiocity.launch.status_tasks import task_states

    counts: Counter[str] = Counter()
    for attempt in attempts(run):
        if attempt.file.exists():
            counts.update(state["host"] for state in task_states(attempt, live={}) if state["state"] == "done")
    return counts
