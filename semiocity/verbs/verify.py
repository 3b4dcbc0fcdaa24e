"""`semiocity verify DATASET`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--quick", action="store_true", help="receipts and sizes only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workers", type=int, help="processes that read at the same time (default: the CPUs)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="part I of N, from 0, for array tasks")


def run(a: argparse.Namespace) -> int:
    import os

    from semiocity.data.verify import show
    from semiocity.errors import UserError

    try:
        i, n = map(int, a.part.split("/"))
    except ValueError:
        raise UserError(f"--part {a.part}: such as 0/8, for the first of eight parts") from None
    workers = a.workers or len(os.sched_getaffinity(0))
    return show(a.dataset, a.quick, a.json, workers, (i, n))
