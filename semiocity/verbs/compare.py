"""`semiocity compare RUN…`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help="trainings, or the prefix of a sweep")
    parser.add_argument("--page", type=Path, metavar="HTML", help="also a page with the curves")
    parser.add_argument("--json", action="store_true", help="everything, curves included")
    parser.add_argument("--runs", type=Path, default=Path("runs"))


def run(a: argparse.Namespace) -> int:
    from semiocity.compare import collect, text
    from semiocity.launch.runs import find_runs

    runs = list(dict.fromkeys(found for name in a.run for found in find_runs(name, a.runs)))
    found = collect.collect(runs)
    print(json.dumps(found, indent=1, sort_keys=True) if a.json else text.render(found))
    if a.page:
        from semiocity.compare import page

        page.write(found, a.page)
        if not a.json:
            print(f"\n{a.page}")
    return 0
