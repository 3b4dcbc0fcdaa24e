"""What all verbs share that bring work to the cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semiocity.launch.jobs import Work


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch file, submit nothing")
    parser.add_argument("--replace", action="store_true", help="let the run's name stand for other arguments now")
    parser.add_argument("--wait", action="store_true", help="follow queued tasks to their end")


def submit(work: Work, a: argparse.Namespace, replace: bool = False) -> int:
    """Bring it there. `replace`: the run's name stands for whatever it is now, asked for or not."""
    from semiocity.launch import jobs, submission

    submission.submit(work, jobs.load_cluster(a.cluster), wait=a.wait, dry_run=a.dry_run, replace=replace or a.replace)
    return 0
