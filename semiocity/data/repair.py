"""Mending what can be mended exactly, and saying what to compute again for the rest.

Indexes are made again from intact tars, receipts from the compacted ones, manifests from receipts; leftovers of the
dead go. Where a shard's bytes are lost its receipt goes, so that the job that made it makes it anew.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from semiocity.data.layout import BASE, ShardPath, check_format, column_folder, missing, read_receipt
from semiocity.data.lease import STALE_S, Owner, lease
from semiocity.data.leftovers import leftovers, remove
from semiocity.data.manifest import merge, read_column_manifest, read_manifest, rebuild, shard_entries, summarize
from semiocity.data.receipts import receipt_of
from semiocity.data.reindex import reindex
from semiocity.data.shard import sha256_file
from semiocity.data.state import EDIT
from semiocity.data.verify import Fault, verify
from semiocity.errors import UserError
from semiocity.files import fsync_folder, json_bytes, read_json, write_atomic

BESIDE_ANOTHER = ("made from", "key of base", "key that base")
"""Faults that a shard has beside its parents' shards only."""

Kind = Literal["index", "receipt", "recompute", "merge", "leftover", "by hand"]


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    kind: Kind
    """`index`, `receipt` and what is merged are made again here, a `leftover` goes; for `recompute` the receipt is
    removed, and `command` makes the shard; `by hand` is for a person to decide."""
    where: str
    why: str
    command: str = ""
    column: str = ""
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.why}" + (f"; then `{self.command}`" if self.command else "")


def show(dataset: Path, apply: bool, quick: bool, as_json: bool, workers: int) -> int:
    """Repair and print. Exit status 0 when nothing is left to do."""
    steps = repair(dataset, apply, quick, workers)
    left = [step for step in steps if not apply or step.kind in ("recompute", "by hand")]
    if as_json:
        print(json.dumps([asdict(step) for step in steps], indent=1, sort_keys=True))
        return 1 if left else 0
    for step in steps:
        print(step)
    commands = sorted({step.command for step in steps if step.command})
    if apply and commands:
        print("now run:", *commands, sep="\n  ")
    elif steps and not apply:
        print(f"nothing was changed; `semiocity repair {dataset} --apply` does this")
    print(f"{dataset}: {len(steps)} steps" if steps else f"{dataset}: nothing to repair")
    return 1 if left else 0


def repair(dataset: Path, apply: bool = False, quick: bool = False, workers: int = 1) -> list[Step]:
    """What a dataset needs; with `apply` it is done. `quick` looks at sizes and receipts only, as in verify.

    Raises UserError when there is no dataset, or none whose base column could be told.
    """
    dataset = Path(dataset)
    lost = _lost_manifests(dataset)
    if lost and not apply:
        return lost  # more can be told once they are there
    steps = [_remake(dataset, step) for step in lost]
    if lost:
        rebuild(dataset)
    faults = [fault for fault in verify(dataset, quick, workers) if fault.level == "fault"]
    columns = read_manifest(dataset)["columns"]
    found: dict[Step, None] = {}
    orphans: dict[Step, ShardPath] = {}
    for (name, shard), group in groupby(faults, key=lambda fault: (fault.column, fault.shard)):
        if name is not None and shard is not None:
            path, own = ShardPath(column_folder(dataset, name, columns[name]["revision"]), shard), list(group)
            step = _shard_step(dataset, path, own)
            found[step] = None
            if all(fault.what.startswith(BESIDE_ANOTHER) for fault in own):
                orphans[step] = path
        else:
            found.update((_whole_step(dataset, fault), None) for fault in group)
    for step, path in orphans.items():
        if _comes_back(path, found, columns):
            del found[step]
    if apply:
        done = [_mend(dataset, step, columns) for step in found if step.kind != "merge"]
        steps += done + [_merge(dataset, step, columns) for step in found if step.kind == "merge"]
    else:
        steps += found
    for dead in leftovers(dataset, STALE_S):
        steps.append(Step("leftover", str(dead.relative_to(dataset)), "left by somebody who died"))
        if apply:
            remove(dead)
    return steps


def _lost_manifests(dataset: Path) -> list[Step]:
    """Manifests of the dataset and its columns that cannot be read: without them nothing else can be told."""
    steps = []
    pointers = sorted(dataset.glob("columns/*/current.json"), key=lambda path: path.parent.name != BASE)
    for pointer in pointers:
        column, revision = pointer.parent.name, read_json(pointer)["revision"]
        try:
            check_format(read_json(pointer), pointer)
            read_column_manifest(dataset, column, revision)
        except UserError as error:
            if "semiocity upgrade" in str(error):
                raise
            where = str(column_folder(dataset, column, revision) / "manifest.json")
            steps.append(Step("merge", where, str(error), column=column))
    try:
        read_manifest(dataset)
    except UserError as error:
        if "semiocity upgrade" in str(error) or not (pointers and pointers[0].parent.name == BASE):
            raise
        steps.append(Step("merge", str(dataset / "manifest.json"), str(error)))
    return steps


def _remake(dataset: Path, step: Step) -> Step:
    """Write a column's manifest anew from its receipts. A column that lacks some is no longer current."""
    if not step.column:
        return step
    folder = Path(step.where).parent
    numbers = [int(path.stem) for path in folder.glob("[0-9]" * 5 + "/" + "[0-9]" * 8 + ".json")]
    shards = max(numbers, default=-1) + 1
    gone = missing(folder, shards)
    if gone and step.column != BASE:
        (folder.parent / "current.json").unlink()
        why = f"{len(gone)} shards are missing too"
        return Step("recompute", step.where, why, f"the job that made {step.column}", step.column)
    summarize(dataset, folder, shards, set(gone), reread=True, parents=None).publish()
    return step


def _shard_step(dataset: Path, path: ShardPath, faults: list[Fault]) -> Step:
    column, why = path.folder.parent.name, "; ".join(dict.fromkeys(fault.what for fault in faults))

    def step(kind: Kind, command: str = "") -> Step:
        return Step(kind, str(path), why, command, column, path.shard)

    if any("a shard that the plan does not have" in fault.what for fault in faults):
        return step("by hand")
    receipt = None
    with suppress(UserError):
        receipt = read_receipt(path)
    if receipt is None and _lost_receipt(dataset, path) is not None:
        return step("receipt")
    if receipt is not None and all(fault.what.startswith(("receipt and manifest", "not in the")) for fault in faults):
        return Step("merge", f"{column}/{path.folder.name}", "its manifest is not what the receipts say", column=column)
    if receipt is not None and all(f"{path.stem}.parquet" in fault.what for fault in faults) and reindex(path, receipt):
        return step("index")
    return step("recompute", command_for(dataset, column, path.folder.name))


def _comes_back(path: ShardPath, steps: Iterable[Step], columns: dict[str, Any]) -> bool:
    """Whether a shard fits again once its parents' shards are mended or made anew, which gives the bytes that it was
    made from: then it stays. Should they come out otherwise, the next look finds it."""
    mended = {(step.column, step.shard) for step in steps if step.kind in ("index", "receipt", "recompute")}
    receipt = read_receipt(path)
    parents = {} if receipt is None else receipt["parents"]
    now = {name for name, named in parents.items() if columns.get(name, {}).get("revision") == named["revision"]}
    return receipt is not None and any((parent, path.shard) in mended for parent in {BASE, *now})


def _whole_step(dataset: Path, fault: Fault) -> Step:
    if fault.column is None or "plan.json" in fault.where:
        command = command_for(dataset, BASE, read_manifest(dataset)["columns"][BASE]["revision"])
        return Step("recompute", fault.where, fault.what, command)
    folder = column_folder(dataset, fault.column, read_manifest(dataset)["columns"][fault.column]["revision"])
    where = f"{folder.parent.name}/{folder.name}"
    return Step("merge", where, "its manifest is not what the receipts say", column=fault.column)


def _lost_receipt(dataset: Path, path: ShardPath) -> bytes | None:
    """The receipt's bytes from the compacted ones, when tar and parquet are those that it vouched for."""
    if not (path.tar.exists() and path.parquet.exists()):
        return None
    with suppress(UserError, OSError):
        entries = shard_entries(dataset, path.folder.parent.name, path.folder.name)
        thousand = entries.thousand(path.shard // 1000)
        place = None if thousand is None else thousand.places.get(path.shard)
        if thousand is None or place is None or thousand.facts["rejected_sha256"] is not None:
            return None
        receipt = receipt_of(thousand, place)
        data = json_bytes(receipt)
        if (
            len(data) == thousand.facts["receipt_bytes"][place]
            and sha256_file(path.tar) == receipt["sha256"]
            and sha256_file(path.parquet) == receipt["parquet_sha256"]
        ):
            return data
    return None


def _merge(dataset: Path, step: Step, columns: dict[str, Any]) -> Step:
    """Merge a column anew, from every receipt; or say what is to be done because that is not possible yet."""
    revision = columns[step.column]["revision"]
    try:
        merge(dataset, step.column, revision, reread=True)
    except UserError as error:
        return replace(step, kind="recompute", why=str(error), command=command_for(dataset, step.column, revision))
    return step


def _mend(dataset: Path, step: Step, columns: dict[str, Any]) -> Step:
    """Mend one shard, or remove its receipt."""
    if step.kind == "by hand" or step.shard is None:
        return step
    path = ShardPath(column_folder(dataset, step.column, columns[step.column]["revision"]), step.shard)
    with lease(path.lease, Owner.here("repair")) as held:
        if not held:
            return replace(step, kind="by hand", why="somebody works on it; repair again when they have ended")
        if step.kind == "receipt":
            made, target = _lost_receipt(dataset, path), path.receipt
        elif step.kind == "index":
            receipt = read_receipt(path)
            made, target = None if receipt is None else reindex(path, receipt), path.parquet
        else:
            path.receipt.unlink(missing_ok=True)
            fsync_folder(path.parent)
            return step
        if made is None:
            return replace(step, kind="by hand", why="it changed meanwhile; repair again")
        write_atomic(target, made)
    return step


def command_for(dataset: Path, column: str, revision: str) -> str:
    """The command line that makes what is missing of a column, with the recipe or job in this folder that fits."""
    if column == BASE:
        name = read_manifest(dataset)["name"]
        recipe = _fitting(Path("shards"), lambda facts: facts.get("name") == name) or f"shards/{name}.toml"
        return f"semiocity pack {recipe}"
    with suppress(UserError):
        stage = read_column_manifest(dataset, column, revision)["stage"]["name"]
        if stage == "import":
            return f"semiocity import {dataset} --again {column}"
        if stage == EDIT:
            return f"semiocity edit {dataset} --column {column} --again"
        target = Path(dataset).resolve()

        def fits(facts: dict[str, Any]) -> bool:
            there = facts.get("stage") == stage and Path(str(facts.get("dataset"))).resolve() == target
            return there and facts.get("column", column) == column

        return f"semiocity {stage} {_fitting(Path('jobs'), fits) or f'jobs/{stage}.toml'}"
    return f"the job that made {column}"


def _fitting(folder: Path, fits: Any) -> Path | None:
    for path in sorted(folder.glob("*.toml")):
        with suppress(tomllib.TOMLDecodeError, OSError), path.open("rb") as file:
            if fits(tomllib.load(file)):
                return path
    return None
