"""docs/soak.md: what `make soak` found, a section a test; each test replaces its own and leaves the others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

HEAD = "# Soak\n\nWritten by `make soak`: the hours-long tests and what they measured. Each section is one test's.\n"


def write_section(path: Path, title: str, text: str) -> None:
    """Put `text` under the heading `title` of the report at `path`; other sections stay as they are."""
    old = path.read_text(encoding="utf-8") if path.exists() else HEAD
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    kept = {section.splitlines()[0].removeprefix("## "): section.strip() for section in sections}
    kept[title] = f"## {title}\n\n{text.strip()}"
    parts = [head.strip(), *(kept[name] for name in sorted(kept))]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def chaos_table(scenarios: Sequence[dict[str, Any]], seed: int, kinds: Sequence[str]) -> str:
    """Figures of scenarios as Markdown. A scenario: {"work", "strikes", "units", "repeated", "submissions", "wanted"}."""
    lines = [
        f"Seed {seed}. Every scenario ended with the bytes of an undisturbed one, nothing lost, repeated or left.",
        "",
    ]
    lines += [
        "| work | scenarios | disturbances | rows or steps | computed again | submissions |",
        "|---|---|---|---|---|---|",
    ]
    for work in sorted({scenario["work"] for scenario in scenarios}):
        mine = [scenario for scenario in scenarios if scenario["work"] == work]
        wanted, again = sum(s["wanted"] for s in mine), sum(s["repeated"] for s in mine)
        strikes = sum(len(s["strikes"]) for s in mine)
        share = f"{again} ({100 * again / max(wanted, 1):.1f} %)"
        lines.append(
            f"| {work} | {len(mine)} | {strikes} | {wanted} | {share} | {sum(s['submissions'] for s in mine)} |"
        )
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for scenario in scenarios:
        for strike in scenario["strikes"]:
            by_kind[strike["kind"]].append({**strike, "work": scenario["work"]})
    phases = sorted({f"{s['work']} {s['phase']}" for found in by_kind.values() for s in found})
    lines += [
        "",
        "Disturbances by kind and by the point at which they came; seconds from a disturbance to the next row or",
        "step of what it hit, median and longest:",
        "",
    ]
    lines += [f"| kind | {' | '.join(phases)} | all | seconds |", "|---" * (len(phases) + 3) + "|"]
    for kind in kinds:
        found = by_kind[kind]
        counts = [sum(f"{s['work']} {s['phase']}" == phase for s in found) for phase in phases]
        times = [s["recovery_s"] for s in found if s["recovery_s"] is not None]
        seconds = f"{median(times):.1f}, {max(times):.1f}" if times else ""
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} | {len(found)} | {seconds} |")
    return "\n".join(lines)
