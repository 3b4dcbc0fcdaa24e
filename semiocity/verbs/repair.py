"""`semiocity repair DATASET`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--apply", action="store_true", help="do it; without, only say what would be done")
    parser.add_argument("--quick", action="store_true", help="look at receipts and sizes only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workers", type=int, help="processes that read at the same time (default: the CPUs)")


def run(a: argparse.Namespace) -> int:
    import os

    from semiocity.data.repair import show

    return show(a.dataset, a.apply, a.quick, a.json, a.workers or len(os.sched_getaffinity(0)))
