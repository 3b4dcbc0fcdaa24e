"""`semiocity verify DATASET`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--quick", action="store_true", help="receipts and sizes only")
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    from semiocity.data.verify import show

    return show(a.dataset, quick=a.quick, as_json=a.json)
