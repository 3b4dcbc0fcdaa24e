"""Run the benchmarks of this folder, those that begin with a claim, and write docs/benchmarks.md.

all.py [SCRIPT …]    only these; the page keeps the lines of the others
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
RESULTS = HERE / "results.json"
"""Last line of each script, kept so that one of them can be run again alone."""


def main(names: list[str]) -> int:
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for script in sorted(HERE.glob("*.py")):
        if not script.read_text(encoding="utf-8").startswith('"""Claim:') or (names and script.name not in names):
            continue
        print(f"== {script.name}", flush=True)
        done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, flush=True)
        results[script.name] = json.loads(done.stdout.strip().splitlines()[-1])
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    lines = [
        "# Benchmarks",
        "",
        "Each line comes from one script in `bench/`, which measures us and a peer, or a limit, in one run on the",
        "same work. `make bench` runs them all and writes this page. The machine has two cores and no GPU.",
        "",
        "| script | claim | ours | peer | ratio | goal | met |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['claim']} | {row['ours']} | {row['peer']} | {row['ratio']} | {row['goal']} | "
            f"{'yes' if row['met'] else 'no'} |"
            for name, row in sorted(results.items())
        ),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(row["met"] for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
