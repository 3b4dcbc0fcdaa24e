"""`semiocity edit DATASET`: captions corrected by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from semiocity.errors import UserError

if TYPE_CHECKING:
    from semiocity.data.lease import Owner


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--column", default="caption", help="default: caption")
    parser.add_argument(
        "--from", dest="file", type=Path, metavar="FILE", help="CSV or JSON lines with `key` and `text`"
    )
    parser.add_argument("--key", help="one row, with --text")
    parser.add_argument("--text", help="its new text")
    parser.add_argument(
        "--from-revision", metavar="REVISION", help="the corrections of another revision of the column, made again"
    )
    parser.add_argument("--again", action="store_true", help="make the shards again that the corrected column has lost")


def run(a: argparse.Namespace) -> int:
    from semiocity.data import edit
    from semiocity.data.lease import Owner
    from semiocity.data.manifest import read_manifest

    asked = [a.file is not None, a.key is not None, a.from_revision is not None, a.again]
    if sum(asked) != 1 or (a.key is None) != (a.text is None):
        raise UserError("say what to correct: --from FILE, --key KEY --text TEXT, --from-revision REVISION, or --again")
    owner = Owner.here("edit")
    if a.again:
        return _again(a.dataset, a.column, owner)
    if a.from_revision:
        return _bring(a.dataset, a.column, a.from_revision, owner)
    edits = edit.read_edits(a.file) if a.file else {a.key: a.text}
    before = read_manifest(a.dataset)["columns"].get(a.column, {}).get("revision")
    revision = edit.edit(a.dataset, edits, owner, a.column)
    if revision == before:
        print(f"{a.dataset}: {a.column} has these texts already; nothing was done")
    else:
        print(f"{a.dataset}: {a.column} is now revision {revision}, with {len(edits)} corrections")
    return 0


def _again(dataset: Path, column: str, owner: Owner) -> int:
    from semiocity.data.corrected import catch_up
    from semiocity.data.state import lineage, pointers

    revision = pointers(dataset).get(column)
    if revision is None or len(lineage(dataset, column, revision)) < 2:
        raise UserError(
            f"{dataset}: --again: column {column} has no corrections by hand (`semiocity columns {dataset}`)"
        )
    catch_up(dataset, column, revision, owner)
    print(f"{dataset}: {column}/{revision} is whole")
    return 0


def _bring(dataset: Path, column: str, revision: str, owner: Owner) -> int:
    from semiocity.data.edit import SHOWN, bring

    found = bring(dataset, column, revision, owner)
    print(f"{dataset}: {column} is now revision {found.revision}, with {found.corrections} corrections of {revision}")
    if found.gone:
        print(f"{found.gone} more are of rows that are no longer there")
    if keys := found.other_picture:
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        print(
            f"{len(keys)} rows have another picture than their text was written for and were left as they are: "
            f"{', '.join(keys[:SHOWN])}{more}; should a text be right still, give it with --key or --from"
        )
    return 0
