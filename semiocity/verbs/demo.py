"""`semiocity demo`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", type=Path, default=Path("shards/city.toml"))
    parser.add_argument("--root", type=Path, help="where the recipe's source lies")
    parser.add_argument("--cluster", type=Path, metavar="FILE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the training"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch files, do nothing")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import demo

    return demo.run(a.recipe, a.root, a.cluster, a.set, a.dry_run)
