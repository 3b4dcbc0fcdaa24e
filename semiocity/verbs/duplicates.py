"""`semiocity duplicates JOB`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, help="a job file, or with --check a dataset's folder")
    submitting.arguments(parser)
    parser.add_argument("--check", action="store_true", help="prove that splits separate no duplicates; submit nothing")
    parser.add_argument("--split", default="duplicates.split", help="with --check: the scalar that holds the splits")
    parser.add_argument("--view", metavar="NAME", help="with --check: the rows and splits of a saved view instead")
    parser.add_argument("--json", action="store_true", help="with --check: the outcome as JSON")


def run(a: argparse.Namespace) -> int:
    if a.check:
        from semiocity.stages.duplicates_check import show

        return show(a.job, a.split, a.view, as_json=a.json)
    from semiocity.launch import jobs

    return submitting.submit(jobs.reduce(a.job, a.set, expect="duplicates"), a)
