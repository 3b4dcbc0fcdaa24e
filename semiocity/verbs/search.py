"""`semiocity search DATASET EXPRESSION`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="such as data/city")
    parser.add_argument("expression", help="""such as 'split == "val" and "car" in caption.text' (docs/filters.md)""")
    parser.add_argument("--columns", default="", metavar="A,B", help="scalars to print beside the keys")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N rows")
    parser.add_argument("--count", action="store_true", help="print the number of rows only")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(a: argparse.Namespace) -> int:
    import json
    from itertools import islice

    from semiocity.data.keys import printable
    from semiocity.data.search import search
    from semiocity.errors import UserError

    if a.limit is not None and a.limit < 0:
        raise UserError(f"--limit {a.limit}: a number of rows, 0 or more")
    show = [name.strip() for name in a.columns.split(",") if name.strip()]
    hits = islice(search(a.dataset, a.expression, show), a.limit)
    if a.count:
        number = sum(1 for _ in hits)
        print(json.dumps({"rows": number}) if a.json else number)
        return 0
    for hit in hits:
        if a.json:
            print(json.dumps({"key": hit.key, "shard": hit.shard, "row": hit.row, **hit.values}))
        else:
            print("\t".join([hit.key, *("" if v is None else printable(str(v)) for v in hit.values.values())]))
    return 0
