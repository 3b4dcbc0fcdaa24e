"""`semiocity import DATASET --from FILE_OR_DIR …`, or `--again COLUMN`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--from",
        dest="inputs",
        nargs="+",
        type=Path,
        metavar="FILE_OR_DIR",
        help="txt, png, csv, tsv, jsonl, parquet, COCO",
    )
    what.add_argument(
        "--again",
        metavar="COLUMN",
        help="make the shards that an imported column lacks, from what was imported: its files need not be there",
    )
    parser.add_argument("--column", help="its name (default: caption, or mask)")
    parser.add_argument("--kind", choices=("captions", "masks"), help="what the inputs are (default: as they look)")
    parser.add_argument("--key", metavar="NAME", help="column of a table that names the row")
    parser.add_argument("--text", metavar="NAME", help="column of a table that holds the caption")
    parser.add_argument(
        "--missing",
        choices=("tombstone", "none"),
        default="tombstone",
        help="rows without an input: left out by views of the column, or there without a value",
    )
    parser.add_argument("--made-by", default="", metavar="TEXT", help="what or who made it, for the receipts")
    parser.add_argument("--allow-unmatched", action="store_true", help="leave out inputs that fit no row")
    submitting.arguments(parser)


def run(a: argparse.Namespace) -> int:
    from semiocity.data.imports import job_of, pin, write_job
    from semiocity.data.sidecars import Columns
    from semiocity.launch import jobs

    if a.again:
        job = job_of(a.dataset, a.again)
        # The dataset may have been moved since.
        here = [
            f"dataset={json.dumps(str(a.dataset.resolve()))}",
            f"args.folder={json.dumps(str(job.parent.resolve()))}",
        ]
        return submitting.submit(jobs.stage(job, [*here, *a.set], expect="import"), a, replace=True)
    report = pin(a.dataset, a.inputs, a.kind, Columns(a.key, a.text), a.allow_unmatched)
    without = {"tombstone": "are left out by views of the column", "none": "have no value"}[a.missing]
    print(
        f"{a.dataset}: {report.kind} for {report.matched} rows; {report.without} rows without one {without}"
        + (f"; {report.unmatched} inputs fit no row ({report.folder}/unmatched.jsonl)" if report.unmatched else "")
    )
    job = write_job(report, a.dataset, a.column, a.missing, a.made_by)
    return submitting.submit(jobs.stage(job, a.set, expect="import"), a, replace=True)
