"""`semiocity gc [DATASET]`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, nargs="?", default=Path("data"), help="a dataset, or a folder of datasets")
    parser.add_argument("--apply", action="store_true", help="delete; without, only say what would go")
    parser.add_argument("--grace-h", type=float, default=24.0, help="never what changed within so many hours (24)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="what runs name stays")
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch.garbage import show

    return show(a.path, a.runs, a.apply, a.grace_h * 3600, a.json)
