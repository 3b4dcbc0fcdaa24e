"""`semiocity upgrade DATASET`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    from semiocity.data.upgrade import show

    return show(a.dataset, a.json)
