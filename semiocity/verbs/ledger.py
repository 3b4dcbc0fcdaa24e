"""`semiocity ledger RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a training's folder, whose job said data.ledger = true")
    parser.add_argument("--dataset", type=Path, help="where the dataset lies now, if it was moved")
    parser.add_argument("--json", action="store_true")


def run(a: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from semiocity.train.ledger import check

    found = check(a.run, a.dataset)
    if a.json:
        print(json.dumps({"ok": found.ok, **asdict(found)}))
        return 0 if found.ok else 1
    for part in found.parts:
        print(f"part {part['part']}: {part['steps']} steps from step {part['first_step']} on {part['ranks']} ranks")
    for epoch in found.epochs:
        print(
            f"epoch {epoch['epoch']}: {epoch['rows']} of {found.rows} rows in {epoch['batches']} batches, "
            f"{epoch['left_out']} left out, {epoch['padded']} places padded"
        )
    for fault in found.faults:
        print(f"FAULT {fault}")
    if found.more_faults:
        print(f"… and {found.more_faults} more")
    print(
        f"{a.run}: {found.steps} of {found.of} steps, "
        + ("each as the order says, no sample twice in an epoch" if found.ok else "NOT as the order says")
    )
    return 0 if found.ok else 1
