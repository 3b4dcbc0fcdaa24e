"""`semiocity view FILE_OR_FOLDER`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        help="such as views/night.toml; or data/NAME/views/VIEW, to build a view again by its own rule",
        metavar="FILE_OR_FOLDER",
    )
    submitting.arguments(parser)


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return submitting.submit(jobs.view(a.file, a.set), a)
