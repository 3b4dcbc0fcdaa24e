"""`semiocity browse`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="the dataset's folder, such as data/city")
    parser.add_argument("--port", type=int, default=0, help="default: the system chooses")
    parser.add_argument("--host", help="name of this login node as seen from outside (default: the site's login_host)")
    parser.add_argument(
        "--shards", metavar="FIRST:END", help="only these shards, such as 0:100 (for very large datasets)"
    )
    parser.add_argument("--view", metavar="NAME", help="begin with the rows of a saved view; the page can pick others")
    contents = parser.add_mutually_exclusive_group()
    contents.add_argument(
        "--contents",
        action="store_true",
        default=None,
        help="search full captions, and filter by the classes of label maps, by reading the tars once "
        "(default: with up to 20,000 rows)",
    )
    contents.add_argument("--no-contents", dest="contents", action="store_false", help="never open a tar for the index")
    parser.add_argument("--cache", type=Path, help="folder for the index; default: DATASET/.browse, else ~/.cache")


def run(a: argparse.Namespace) -> int:
    try:
        from semiocity.ui.browse.serve import browse
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed here: pip install 'semiocity[data]'") from None

    from semiocity.launch.jobs import load_cluster

    host = a.host or load_cluster(None).login_host
    return browse(a.dataset, a.port, host, a.shards, a.contents, a.cache, a.view)
