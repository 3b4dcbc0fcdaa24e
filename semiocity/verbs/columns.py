"""`semiocity columns DATASET`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="such as data/city")
    parser.add_argument(
        "--use", action="append", default=[], metavar="COLUMN=REVISION", help="make this revision the current one"
    )
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    import json

    from semiocity.data import provenance
    from semiocity.errors import UserError

    for item in a.use:
        column, equals, revision = item.partition("=")
        if not (column and equals and revision):
            raise UserError(f"--use {item}: expected COLUMN=REVISION, such as caption=0123456789")
        provenance.use(a.dataset, column, revision)
    facts = provenance.columns(a.dataset)
    print(json.dumps(facts, indent=1, sort_keys=True) if a.json else provenance.render(facts))
    return 0 if provenance.healthy(facts) else 1
