"""`semiocity du [DATASET]`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, nargs="?", default=Path("data"), help="a dataset, or a folder of datasets")
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    from semiocity.data.usage import show

    return show(a.path, a.json)
