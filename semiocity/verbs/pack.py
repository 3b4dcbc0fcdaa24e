"""`semiocity pack RECIPE`"""

from __future__ import annotations

import argparse
import os
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
    from semiocity.data import manifest, rejects
    from semiocity.launch import jobs

    work = jobs.pack(a.recipe, a.set, a.job, anew=a.anew, dry_run=a.dry_run)
    status = submitting.submit(work, a)
    if a.dry_run or not manifest.merged(work.dataset, work.column, work.revision, work.shards):
        return status  # queued: the last task's log says how many
    print(rejects.summary(Path(os.path.relpath(work.dataset))))
    return status if manifest.read_manifest(work.dataset)["rows"] else 1
