"""`semiocity repeat RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, help="name below runs/, or any run folder, such as a copy of another project's"
    )
    parser.add_argument(
        "--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, or the run's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch files, submit nothing")
    parser.add_argument("--wait", action="store_true", help="follow queued tasks to their end")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch.repeat import repeat

    repeat(a.run, a.cluster, wait=a.wait, dry_run=a.dry_run)
    return 0
