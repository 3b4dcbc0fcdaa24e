"""`semiocity remove DATASET KEY …`: take rows down for good."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path)
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument("--keys-from", type=Path, metavar="FILE", help="further keys, one a line")
    parser.add_argument("--reason", default="", help="kept with the removal; no names")
    parser.add_argument("--apply", action="store_true", help="do it; without, only say what would be removed")


def run(a: argparse.Namespace) -> int:
    from semiocity.data.commands import command_for
    from semiocity.data.lease import Owner
    from semiocity.data.manifest import read_manifest
    from semiocity.data.removed import read_removed, unkept
    from semiocity.data.takedown import carry_out, remains, request
    from semiocity.data.views import rebuilding, stale_views

    keys = [*a.keys, *(a.keys_from.read_text().split() if a.keys_from else [])]
    wanted = request(a.dataset, keys, a.reason) if keys else []
    if not a.apply:
        print(f"{len(wanted)} rows would be taken down for good, from every revision of every column; --apply does it")
        return 0
    # Those of earlier requests too: one may have been cut short.
    written = carry_out(a.dataset, [*read_removed(a.dataset), *wanted], Owner.here("remove"))
    print(f"{len(wanted)} rows taken down, {len(written)} shards written anew")
    for column, facts in read_manifest(a.dataset)["columns"].items():
        if lost := unkept(a.dataset, column, facts["revision"]):
            print(f"{lost}: `{command_for(a.dataset, column, facts['revision'])}` chooses others")
    for name in stale_views(a.dataset):
        print(f"View {name} is stale, and trainings refuse it until it is built again: `{rebuilding(a.dataset, name)}`")
    print("Not reached from here: the source's own files, exports, and what runs made of the rows (models, pages)")
    for page in sorted(Path("runs").glob("*/*.html")):
        if any(key.encode() in page.read_bytes() for key in keys):
            print(f"{page}: shows a row that was taken down; delete it")
    left = list(remains(a.dataset))
    for path, what in left:
        print(f"{path}: {what}")
    return 1 if left else 0
