"""What a check found: its level, the facts, and what to do. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "fault"]
MARKS: dict[Level, str] = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    """Name of the check, such as "partition"."""
    level: Level
    found: str
    todo: str = ""
    """What mends it; empty where all is well."""
    place: str = "login"
    """`login`, or the name of the node."""


def ok(check: str, found: str, place: str = "login") -> Finding:
    return Finding(check, "ok", found, "", place)


def warning(check: str, found: str, todo: str, place: str = "login") -> Finding:
    return Finding(check, "warning", found, todo, place)


def fault(check: str, found: str, todo: str, place: str = "login") -> Finding:
    return Finding(check, "fault", found, todo, place)


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing is at fault; warnings are allowed."""
    return all(finding.level != "fault" for finding in findings)


def render(findings: Sequence[Finding]) -> str:
    """The report as text: by place, in the order of the checks, and a count at the end."""
    lines = []
    for place in dict.fromkeys(finding.place for finding in findings):
        lines.append(f"{place}:")
        for finding in (f for f in findings if f.place == place):
            lines.append(f"  {MARKS[finding.level]}  {finding.check:<13} {finding.found}")
            if finding.todo:
                lines.append(f"{'':<26}-> {finding.todo}")
    counts = {level: sum(f.level == level for f in findings) for level in MARKS}
    lines.append(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['fault']} faults")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"healthy": healthy(findings), "findings": [asdict(f) for f in findings]}, indent=1)
