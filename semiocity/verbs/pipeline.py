"""`semiocity pipeline FILE`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="such as jobs/pipelines/city.toml")
    parser.add_argument("--phases", metavar="A,B", help="only these steps")
    parser.add_argument("--start-from", metavar="STEP", help="this step and all that waits for it")
    parser.add_argument("--set", action="append", default=[], metavar="STEP.KEY=VALUE", help="override a key of a step")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the sbatch files, queue nothing")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, queue nothing")
    parser.add_argument("--wait", action="store_true", help="follow queued steps to their end")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs, pipeline_run
    from semiocity.launch.pipeline import choose, load
    from semiocity.launch.pipeline_check import check_cluster
    from semiocity.launch.pipeline_plan import as_json, plan

    cluster = jobs.load_cluster(a.cluster)
    pipeline = load(a.file, a.set)
    chosen = choose(pipeline, [name for name in (a.phases or "").split(",") if name], a.start_from)
    if a.json:
        check_cluster(pipeline, cluster, chosen)
        print(as_json(plan(pipeline, cluster, chosen, dry_run=True)))
        return 0
    done = pipeline_run.run(pipeline, cluster, chosen, wait=a.wait, dry_run=a.dry_run)
    followed = a.wait or cluster.executor == "local"
    return 0 if done or a.dry_run or not followed else 1
