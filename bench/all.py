"""Run every benchmark of this folder and collect their last lines into docs/benchmarks.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


def main() -> int:
    rows = []
    for script in sorted(HERE.glob("*.py")):
        if script.name == "all.py":
            continue
        print(f"== {script.name}", flush=True)
        done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, flush=True)
        rows.append((script.name, json.loads(done.stdout.strip().splitlines()[-1])))
    lines = [
        "# Benchmarks",
        "",
        "Each line comes from one script in `bench/`, which measures us and a peer in the same run on the same work.",
        "`make bench` writes this page.",
        "",
        "| script | claim | ours | peer | ratio | goal | met |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['claim']} | {row['ours']} | {row['peer']} | {row['ratio']} | {row['goal']} | "
            f"{'yes' if row['met'] else 'no'} |"
            for name, row in rows
        ),
    ]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(row["met"] for _, row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
