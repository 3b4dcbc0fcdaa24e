"""Run the benchmarks of this folder, those that begin with a claim, and write docs/benchmarks.md.

all.py [SCRIPT …]    only these; the page keeps what it has of the others
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
RESULTS = HERE / "results.json"
"""Last line of each script, kept so that one of them can be run again alone."""
LIBRARIES = ("webdataset", "mosaicml-streaming", "litdata", "datatrove", "faiss-cpu", "simplejpeg", "pillow", "torch")


def main(names: list[str]) -> int:
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    scripts = {
        script.name: script
        for script in sorted(HERE.glob("*.py"))
        if script.read_text(encoding="utf-8").startswith('"""Claim:')
    }
    for name in names or scripts:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, str(scripts[name])], stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, flush=True)
        results[name] = json.loads(done.stdout.strip().splitlines()[-1]) | {"machine": machine()}
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    shown = {name: results[name] for name in sorted(scripts) if name in results}
    PAGE.write_text("\n".join(page(shown, scripts)) + "\n", encoding="utf-8")
    return 0 if all(goal["met"] for row in shown.values() for goal in goals(row)) else 1


def goals(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A script's goals; one that has a single goal says it at once."""
    found: list[dict[str, Any]] = row.get("goals", [row])
    return found


def page(results: dict[str, Any], scripts: dict[str, Path]) -> Iterator[str]:
    yield from (
        "# Benchmarks",
        "",
        "Each claim is measured by one script in `bench/`, against a peer or a limit, in one run on the same work.",
        "Contenders alternate; figures are medians. `make bench` runs them all and writes this page; peers come with",
        f"`make peers`. Versions: {', '.join(versions())}.",
        "",
        "| script | claim | ours | peer | ratio | goal | met |",
        "|---|---|---|---|---|---|---|",
    )
    for name, row in results.items():
        for goal in goals(row):
            values = " | ".join(
                "" if goal[key] is None else str(goal[key]) for key in ("ours", "peer", "ratio", "goal")
            )
            yield f"| {name} | {goal['claim']} | {values} | {'yes' if goal['met'] else 'no'} |"
    for name, row in results.items():
        told = ast.get_docstring(ast.parse(scripts[name].read_text(encoding="utf-8"))) or ""
        yield from ("", f"## {name}", "", told.removeprefix("Claim: ").split("\n\n    ")[0])
        if "machine" in row:
            yield from ("", f"Measured on {row['machine']}.")
        if "figures" in row:
            yield from ("", f"| contender | {row['unit']} |", "|---|---|")
            best_first = sorted(row["figures"].items(), key=lambda item: -item[1] if isinstance(item[1], int) else 0)
            yield from (f"| {contender} | {value} |" for contender, value in best_first)


def machine() -> str:
    """Processor, cores and memory."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, {memory:.0f} GB, no GPU"


def versions() -> list[str]:
    """Of what is compared, from the lock files."""
    text = "\n".join(path.read_text() for path in [*HERE.glob("*.lock"), HERE.parent / "requirements.lock"])
    found = {name: set(re.findall(rf"^{name}==([^\s;\\]+)", text, flags=re.MULTILINE)) for name in LIBRARIES}
    return [f"{name} {' and '.join(sorted(found[name]))}" for name in LIBRARIES if found[name]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
