"""`semiocity train JOB`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.errors import UserError
from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path)
    submitting.arguments(parser)
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="a run for each value; given again, for each combination",
    )


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    if a.sweep:
        if a.replace:
            raise UserError("--replace goes with one run; a sweep is begun anew under another --set run=NAME")
        from semiocity.launch import sweep

        return sweep.run(a.job, a.set, a.sweep, jobs.load_cluster(a.cluster), wait=a.wait, dry=a.dry_run)
    return submitting.submit(jobs.train(a.job, a.set), a)
