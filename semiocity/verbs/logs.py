"""`semiocity logs RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="its name, as `semiocity status` shows it")
    parser.add_argument("--task", type=int, metavar="N", help="default: the first that failed, else one that runs")
    parser.add_argument("--rank", type=int, metavar="R", help="default: the rank that failed first, else 0")
    parser.add_argument("--attempt", type=int, metavar="N", help="default: the newest, or the one of the task shown")
    parser.add_argument("--lines", "-n", type=int, default=40, metavar="N")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the task has ended")
    parser.add_argument("--runs", type=Path, default=Path("runs"))


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import logs
    from semiocity.launch.runs import find_run

    folder = find_run(a.run, a.runs)
    return logs.show(folder, task=a.task, rank=a.rank, attempt=a.attempt, lines=max(1, a.lines), follow=a.follow)
