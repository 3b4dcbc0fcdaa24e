"""`semiocity board`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--port", type=int, default=0, help="default: the system chooses")
    parser.add_argument("--host", help="name of this login node as seen from outside (default: the site's login_host)")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import board
    from semiocity.launch.jobs import load_cluster

    return board.run(a.runs, a.port, a.host or load_cluster(a.cluster).login_host)
