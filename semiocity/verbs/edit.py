"""`semiocity edit DATASET`: captions corrected by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--column", default="caption", help="default: caption")
    parser.add_argument(
        "--from", dest="file", type=Path, metavar="FILE", help="CSV or JSON lines with `key` and `text`"
    )
    parser.add_argument("--key", help="one row, with --text")
    parser.add_argument("--text", help="its new text")


def run(a: argparse.Namespace) -> int:
    from semiocity.data.edit import edit, read_edits
    from semiocity.data.lease import Owner

    if (a.file is None) == (a.key is None) or (a.key is None) != (a.text is None):
        raise UserError("say what to correct: --from FILE, or --key KEY --text TEXT")
    edits = read_edits(a.file) if a.file else {a.key: a.text.strip()}
    revision = edit(a.dataset, edits, Owner.here("edit"), a.column)
    print(f"{a.dataset}: {a.column} is now revision {revision}, with {len(edits)} corrections")
    return 0
