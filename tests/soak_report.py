"""docs/soak.md: what `make soak` found. Each run replaces the lines of the tests that it ran and leaves the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HEAD = "# Soak\n\nWritten by `make soak`: the hours-long versions of the tests, and what they measured.\n"
CASES = "Cases"


def write_section(path: Path, title: str, text: str) -> None:
    """Put `text` under the heading `title` of the report at `path`; other sections stay as they are."""
    old = path.read_text(encoding="utf-8") if path.exists() else HEAD
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    kept = {section.splitlines()[0].removeprefix("## "): section.strip() for section in sections}
    kept[title] = f"## {title}\n\n{text.strip()}"
    parts = [head.strip(), *(kept[name] for name in sorted(kept))]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


@dataclass
class Outcome:
    """What became of the cases of one test."""

    cases: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def write_cases(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Lines of tests, `file::test`, in the section of cases; those of other tests stay as they are."""
    lines = dict(re.findall(r"^\| (\S+::\S+) (\|.*)$", path.read_text(encoding="utf-8") if path.exists() else "", re.M))
    for test, found in outcomes.items():
        passed = found.cases - found.failed - found.skipped
        lines[test] = f"| {found.cases} | {passed} | {found.failed} | {found.skipped} | {found.seconds / 60:.1f} |"
    table = ["| test | cases | passed | failed | skipped | minutes |", "|---|---|---|---|---|---|"]
    write_section(path, CASES, "\n".join([*table, *(f"| {test} {lines[test]}" for test in sorted(lines))]))


def chaos_table(scenarios: Sequence[dict[str, Any]], seed: int, kinds: Sequence[str]) -> str:
    """Figures of scenarios (see `scenario.figures`) as Markdown."""
    return "\n".join(
        [
            f"Seed {seed}. Every scenario ended with the bytes of an undisturbed one; nothing was lost or left.",
            "",
            "| work | scenarios | disturbances | rows or steps | computed again | submissions |",
            "|---|---|---|---|---|---|",
            *(_work_line(work, scenarios) for work in sorted({scenario["work"] for scenario in scenarios})),
            "",
            "Disturbances by kind and by the point at which they came; seconds from a disturbance to the next row or",
            "step of what it hit, median and longest:",
            "",
            *_by_kind(scenarios, kinds),
        ]
    )


def _work_line(work: str, scenarios: Sequence[dict[str, Any]]) -> str:
    mine = [scenario for scenario in scenarios if scenario["work"] == work]
    wanted, again = sum(s["wanted"] for s in mine), sum(s["repeated"] for s in mine)
    strikes, submissions = sum(len(s["strikes"]) for s in mine), sum(s["submissions"] for s in mine)
    share = f"{again} ({100 * again / max(wanted, 1):.1f} %)"
    return f"| {work} | {len(mine)} | {strikes} | {wanted} | {share} | {submissions} |"


def _by_kind(scenarios: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Iterator[str]:
    strikes = [
        (strike["kind"], f"{scenario['work']} {strike['phase']}", strike["recovery_s"])
        for scenario in scenarios
        for strike in scenario["strikes"]
    ]
    places = sorted({place for _, place, _ in strikes})
    yield f"| kind | {' | '.join(places)} | all | seconds |"
    yield "|---" * (len(places) + 3) + "|"
    for kind in kinds:
        mine = [(place, seconds) for name, place, seconds in strikes if name == kind]
        counts = Counter(place for place, _ in mine)
        times = [seconds for _, seconds in mine if seconds is not None]
        shown = f"{median(times):.1f}, {max(times):.1f}" if times else ""
        yield f"| {kind} | {' | '.join(str(counts[place]) for place in places)} | {len(mine)} | {shown} |"
