"""`semiocity retry RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="its name, as `semiocity status` shows it")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch files, submit nothing")
    parser.add_argument("--wait", action="store_true", help="follow queued tasks to their end")
    parser.add_argument("--runs", type=Path, default=Path("runs"))


def run(a: argparse.Namespace) -> int:
    from semiocity.launch.again import retry
    from semiocity.launch.jobs import load_cluster
    from semiocity.launch.runs import find_run

    cluster = load_cluster(a.cluster)
    done = retry(find_run(a.run, a.runs), cluster, a.wait, a.dry_run)
    return 0 if done or a.dry_run or (cluster.executor == "slurm" and not a.wait) else 1
