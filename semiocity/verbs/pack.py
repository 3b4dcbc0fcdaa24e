"""`semiocity pack RECIPE`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--job", type=Path, default=Path("jobs/pack.toml"), help="what packing asks of the cluster")
    parser.add_argument(
        "--anew",
        action="store_true",
        help="also when rows that are packed differ or are gone, or the recipe is another: as another revision of base",
    )
    submitting.arguments(parser)


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return submitting.submit(jobs.pack(a.recipe, a.set, a.job, anew=a.anew, dry_run=a.dry_run), a)
