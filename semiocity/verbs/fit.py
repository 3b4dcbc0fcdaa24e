"""`semiocity fit JOB`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
    parser.add_argument("--gpu-gb", type=float, help="memory of one GPU (default: gpu_gb of the site file)")
    parser.add_argument("--gpu", metavar="NAME", help="kind of GPU, such as a100, for an estimate of the time")
    parser.add_argument("--json", action="store_true", help="the facts, for programs")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import fit, fit_stage, jobs, memory

    cluster = jobs.load_cluster(a.cluster)
    if jobs.is_stage(a.job, a.set):
        facts = fit_stage.fit(a.job, a.set, cluster, a.gpu_gb)
        text = fit_stage.render(facts)
    else:
        if a.gpu_gb:
            cluster = cluster.model_copy(update={"gpu_gb": a.gpu_gb})
        work, chosen = memory.settle(jobs.train(a.job, a.set), cluster)
        for line in chosen:
            print(line, file=sys.stderr)
        facts = fit.fit(work, cluster, a.gpu_gb, a.gpu)
        text = fit.render(facts)
    print(json.dumps(facts, indent=1) if a.json else text)
    return 1 if False in (facts["fits"], facts["host_fits"]) else 0
