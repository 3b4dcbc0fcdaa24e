"""`semiocity evaluate JOB`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path)
    submitting.arguments(parser)


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return submitting.submit(jobs.evaluate(a.job, a.set), a)
