"""`semiocity show DATASET KEY`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="such as data/city")
    parser.add_argument("key", help="a key, the beginning of one, or the picture's file name in its source")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the row's payloads as files")
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    import json
    import sys

    from semiocity.data import show
    from semiocity.stages.base import reads_of

    facts = show.describe(a.dataset, a.key, reads_of)
    print(json.dumps(facts, indent=1) if a.json else show.render(facts))
    for path in show.save(a.dataset, facts["key"], a.save) if a.save else ():
        print(path, file=sys.stderr)
    return 1 if show.damaged(facts) else 0
