"""`semiocity cancel RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        help="its name, as `semiocity status` shows it; a pipeline's ends its steps too, a sweep's prefix its runs",
    )
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be ended, end nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs"))


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import cancel
    from semiocity.launch.runs import find_runs

    return cancel.run(find_runs(a.run, a.runs), a.yes, a.dry_run)
