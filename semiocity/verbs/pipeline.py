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
    parser.add_argument("--dry-run", action="store_true", help="print the plan, queue nothing")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, queue nothing")
    parser.add_argument("--wait", action="store_true", help="follow queued steps to their end")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs, pipeline_run
    from semiocity.launch.pipeline import check_cluster, choose, load

    cluster = jobs.load_cluster(a.cluster)
    pipeline = load(a.file, a.set)
    chosen = choose(pipeline, [name for name in (a.phases or "").split(",") if name], a.start_from)
    check_cluster(pipeline, cluster, chosen)
    if a.dry_run or a.json:
        pipeline_run.show(pipeline_run.plan(pipeline, cluster, chosen), as_text=not a.json)
        return 0
    if cluster.executor == "local":
        pipeline_run.plan(pipeline, cluster, chosen)  # refuses before anything is done
        return 0 if pipeline_run.run_here(pipeline, cluster, chosen) else 1
    attempt = pipeline_run.queue(pipeline, cluster, chosen)
    if attempt is None:
        print("everything is complete, nothing to do")
        return 0
    if not a.wait:
        print(f"`semiocity status {attempt.run.name}` shows where it stands")
        return 0
    return 0 if pipeline_run.follow_all(attempt) else 1
