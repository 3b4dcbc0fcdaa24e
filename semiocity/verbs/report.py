"""`semiocity report RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path)
    parser.add_argument("--dataset", type=Path, help="the dataset's folder (default: the run's own)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also a contact sheet of the generated images")


def run(a: argparse.Namespace) -> int:
    from semiocity.evaluate.report import contact_sheet, write
    from semiocity.launch.runs import attempts

    dataset = a.dataset
    if dataset is None:
        found = [attempt for attempt in attempts(a.run) if attempt.file.exists()]
        if not found:
            raise UserError(f"{a.run}: no run folder of ours; `semiocity status` lists them")
        dataset = Path(found[-1].read()["dataset"])
    print(write(a.run, dataset))
    if a.sheet:
        print(contact_sheet(a.run, dataset, a.sheet))
    return 0
