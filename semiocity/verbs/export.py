"""`semiocity export DATASET --to FORMAT --out DIR`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.errors import UserError
from semiocity.verbs import submitting

if TYPE_CHECKING:
    from semiocity.data.export.selection import Rows


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="parquet, huggingface, coco, fiftyone, webdataset, energon, webshart or imagefolder",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--fields",
        nargs="+",
        default=[],
        metavar="[NAME=]COLUMN.FIELD",
        help="what to export, under which name; COLUMN alone is all of it (default: what the format has a place for)",
    )
    parser.add_argument("--split", help="rows of one split (default: all, each split for itself)")
    parser.add_argument("--filter", metavar="EXPR", help="rows for which this is true (docs/filters.md)")
    parser.add_argument("--view", metavar="NAME", help="rows of a saved view, with the columns that it pins")
    parser.add_argument("--link", action="store_true", help="tars: link whole shards of one column, write indexes only")
    parser.add_argument("--conditioning", metavar="COLUMN.FIELD", help="imagefolder: a second picture for ControlNets")
    parser.add_argument("--metadata", choices=("jsonl", "csv"), help="imagefolder (default: jsonl)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--json", action="store_true", help="print the export's manifest")
    parser.add_argument(
        "--array",
        action="store_true",
        help="as an array job, with what --job asks of the cluster; the rest goes with it",
    )
    parser.add_argument("--job", type=Path, default=Path("jobs/export.toml"), metavar="FILE")
    submitting.arguments(parser)


def run(a: argparse.Namespace) -> int:
    from semiocity.data.export.engine import export
    from semiocity.data.export.selection import Rows as Chosen

    chosen = {"link": a.link or None, "conditioning": a.conditioning, "metadata": a.metadata}
    options = {name: value for name, value in chosen.items() if value is not None}
    rows = Chosen(a.split, a.filter, a.view)
    if a.array:
        return _submit(a, rows, options)
    if a.set or a.cluster or a.dry_run or a.wait:
        raise UserError("--set, --cluster, --dry-run and --wait go with --array")

    def show(done: int, shards: int) -> None:
        print(f"\r\033[K{done}/{shards} shards", end="", file=sys.stderr, flush=True)

    watched = sys.stderr.isatty() and not a.json
    manifest = export(
        a.dataset,
        a.to,
        a.out,
        a.fields,
        rows,
        options,
        a.workers,
        show if watched else lambda done, shards: None,
    )
    if watched:
        print(file=sys.stderr)
    if a.json:
        print(json.dumps(manifest, indent=1, sort_keys=True))
        return 0
    left_out = manifest["left_out"]["rows"]
    # By column: a row may have failed in several.
    failed = ", ".join(f"{rows} in {column}" for column, rows in manifest["left_out"]["tombstones"].items() if rows)
    print(
        f"{a.out}: {manifest['rows_total']} rows, {manifest['files']} files, {manifest['bytes'] / 1e6:.1f} MB"
        + (f"; {left_out} rows left out" if left_out else "")
        + (f" (failed: {failed})" if failed else "")
    )
    return 0


def _submit(a: argparse.Namespace, rows: Rows, options: dict[str, Any]) -> int:
    from semiocity.data.export.wish import Wish
    from semiocity.launch import exporting

    if a.json or a.workers != 1:
        raise UserError("--json and --workers have no effect with --array")
    wish = Wish(str(a.dataset.absolute()), a.to, str(a.out.absolute()), tuple(a.fields), rows, options)
    return submitting.submit(exporting.work(wish, a.job, a.set, a.dry_run), a)
