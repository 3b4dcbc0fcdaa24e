"""`semiocity status`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="only this run, or the runs of the sweep with this prefix")
    parser.add_argument("--watch", action="store_true", help="draw it anew until nothing is queued or running")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="with --watch: between two looks")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))


def run(a: argparse.Namespace) -> int:
    from semiocity.launch.runs import find_runs
    from semiocity.launch.status_text import show, watch

    only = find_runs(a.run, a.runs) if a.run else ()
    if a.watch:
        return watch(a.data, a.runs, only, a.json, max(0.1, a.every))
    return show(a.data, a.runs, only, a.json)
