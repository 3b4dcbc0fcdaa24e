"""`semiocity caption JOB`, `semiocity segment JOB`: the verb is the stage's name."""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path)
    submitting.arguments(parser)


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return submitting.submit(jobs.stage(a.job, a.set, expect=a.verb), a)
