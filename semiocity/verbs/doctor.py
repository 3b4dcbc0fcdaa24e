"""`semiocity doctor [JOB] [--node]`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", type=Path, help="a job to check against the cluster")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
    parser.add_argument("--node", action="store_true", help="submit a small job and show what a node is like")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs that --node asks for (default: the job's, or none)")
    parser.add_argument("--dry-run", action="store_true", help="with --node: print its sbatch file, submit nothing")
    parser.add_argument("--wait-min", type=float, default=10, help="how long --node waits in the queue")
    parser.add_argument("--touch", action="store_true", help="renew access times of files on purged folders, then end")
    parser.add_argument("--json", action="store_true", help="the findings, for programs")


def run(a: argparse.Namespace) -> int:
    import contextlib
    import sys

    from semiocity.config import Resources
    from semiocity.errors import UserError
    from semiocity.launch import doctor, doctor_node, fetch, findings
    from semiocity.launch.jobs import image_of, load_cluster
    from semiocity.stages import model_files

    cluster = load_cluster(a.cluster)
    if a.dry_run and not a.node:
        raise UserError("--dry-run goes with --node; without it doctor submits nothing")
    if a.touch:
        print(f"{doctor.touch(cluster)} files renewed")
        return 0
    asked, image = Resources(), None
    data: dict[str, Any] = {}
    found: list[findings.Finding] = []
    if a.job is not None:
        asked, image, data, found = doctor.read_job(a.job, a.set)
    if a.gpus is not None:
        asked = asked.model_copy(update={"gpus_per_node": a.gpus})
    named = fetch.named_in(data, list(model_files.read_table()))
    found += doctor.login(cluster, asked, image, named)
    if a.node and findings.healthy(f for f in found if f.check in ("SLURM", "partition", "image")):
        models = [str((cluster.models.expanduser() / name).resolve()) for name in named]
        work = doctor_node.work_for(asked, image and image_of(image, cluster), models, cluster.requeue)
        if a.dry_run:
            doctor_node.show(work, cluster, doctor.places(cluster))
            return 0
        with contextlib.redirect_stdout(sys.stderr):  # what the submission says; ours is the report
            found += doctor_node.examine(work, cluster, doctor.places(cluster), a.wait_min)
    print(findings.as_json(found) if a.json else findings.render(found))
    return 0 if findings.healthy(found) else 1
