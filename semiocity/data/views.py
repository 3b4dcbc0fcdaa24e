"""Saved views: which rows of which revisions a training sees, written down (`views/NAME.toml`). Login-node code.

    data/NAME/views/VIEW/view.json                     the view in use: a copy of its revision's
    data/NAME/views/VIEW/REVISION/view.json            columns and revisions, rule, counts, digests of the parts
    data/NAME/views/VIEW/REVISION/00000.parquet        which rows of a thousand shards belong to it

A view copies no image. Its revision is a hash of the rule and of what the columns hold.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from semiocity.config import Job, Resources, apply_set, check, load_toml
from semiocity.data.buckets import BucketOptions
from semiocity.data.manifest import BASE, FOLDER_SHARDS, read_column_manifest, shard_entries
from semiocity.data.pinned import choose_revisions, pinned
from semiocity.data.selection import SPLIT, Policy, Selection, select
from semiocity.errors import UserError
from semiocity.files import digest, read_json

FORMAT = 1
"""Version of view.json and of the parts."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class ViewResources(Resources):
    """What one task of building asks of the cluster."""

    shards_per_task: int = Field(FOLDER_SHARDS, ge=1)
    """Rounded up to whole thousands: a task writes one file a thousand shards."""


class ViewJob(Job):
    """A view (`views/NAME.toml`)."""

    name: str | None = Field(None, pattern=NAME)
    """By default the file's name."""
    fields: tuple[str, ...] = Field(min_length=1)
    """What is read of each row: COLUMN.FIELD or COLUMN.SCALAR."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column → revision, where it is not to be the current one."""
    shards: int | None = Field(None, ge=1)
    """The first so many shards, such as were there before rows were added; by default all."""
    split: str = SPLIT
    """The scalar that says which split a row belongs to, such as duplicates.split; "" for none."""
    filter: str | None = None
    """Expression over scalars; docs/filters.md."""
    join: dict[str, Policy] = Field(default_factory=dict)
    """Column → what becomes of rows that failed there or lack a field: error, skip or none."""
    buckets: BucketOptions | None = None
    """Aspect buckets."""
    resources: ViewResources = ViewResources()


@dataclass(frozen=True)
class ViewPlan:
    """A view, checked against its dataset: everything that decides what building it gives."""

    dataset: Path
    name: str
    facts: dict[str, Any]
    """The dataset's manifest with the columns that the view pins, and no others."""
    selection: Selection

    @property
    def shards(self) -> int:
        return int(self.facts["columns"][BASE]["shards"])

    @property
    def revisions(self) -> dict[str, str]:
        """Column → revision."""
        return {name: column["revision"] for name, column in self.facts["columns"].items()}

    @property
    def digests(self) -> dict[str, str]:
        """Column → digest of its keys and bytes."""
        return {name: column["digest"] for name, column in self.facts["columns"].items()}

    @property
    def digest(self) -> str:
        """64 hex digits: the same rule over the same columns."""
        return digest(
            {
                "format": FORMAT,
                "selection": self.selection.identity(self.digests),
                "columns": self.revisions,
                "shards": self.shards,
            },
            64,
        )

    @property
    def revision(self) -> str:
        return self.digest[:10]

    @property
    def folder(self) -> Path:
        return view_folder(self.dataset, self.name) / self.revision


def plan_view(job: ViewJob, name: str, where: Any) -> ViewPlan:
    """Check a view against its dataset. Reads manifests only. Raises UserError naming file and key."""
    from semiocity.data.manifest import read_manifest

    dataset = Path(job.dataset).absolute()
    chosen = choose_revisions(read_manifest(dataset), dataset, job.columns, where)
    facts = pinned(dataset, chosen)
    if job.shards is not None:
        there = facts["columns"][BASE]["shards"]
        if there < job.shards:
            raise UserError(f"{where}: shards: {dataset} has {there}, fewer than {job.shards}")
        # What the others hold is counted only of the columns that are needed.
        columns = {n: {**c, "shards": min(c["shards"], job.shards)} for n, c in facts["columns"].items()}
        facts = {**facts, "columns": columns}
    selection = _select(facts, job, where)
    needed = pinned(dataset, {column: chosen[column] for column in selection.columns}, job.shards)
    return ViewPlan(dataset, name, needed, selection)


def plan_again(job: ViewJob, revision: str) -> ViewPlan:
    """The plan of a submitted job. Raises UserError when the columns that it pins have changed since."""
    assert job.name is not None
    plan = plan_view(job, job.name, f"view {job.name}")
    if plan.revision != revision:
        raise UserError(
            f"{plan.dataset}: view {plan.name}: revision {revision} was to be built, but its columns now give "
            f"{plan.revision}: they changed since the job was submitted; submit it again"
        )
    return plan


def _select(facts: Mapping[str, Any], job: ViewJob, where: Any) -> Selection:
    by = job.split or None
    if by == SPLIT and "split" not in facts["columns"][BASE]["scalars"]:
        raise UserError(f'{where}: split: the dataset has no scalar {SPLIT}; name another, or set split = ""')
    called = {"split_by": "split"}
    return select(facts, where, job.fields, None, by, job.filter, job.join, job.buckets, names=called)


def view_folder(dataset: Path, name: str) -> Path:
    """Where a view's revisions lie."""
    return Path(dataset) / "views" / name


def load_job(path: Path, sets: Sequence[str] = ()) -> ViewJob:
    """A view's file; or the folder of one that was built, data/NAME/views/VIEW, whose rule, revisions and shards are
    taken again. Raises UserError."""
    if not path.is_dir():
        return load_toml(path, ViewJob, sets)
    dataset = path.absolute().parents[1]
    if path.absolute().parent.name != "views" or not (path / "view.json").exists():
        raise UserError(f"{path}: neither a view's file nor the folder of one that was built (data/NAME/views/VIEW)")
    found = read_view(dataset, path.absolute().name)
    data = {name: found[name] for name in ("name", "fields", "columns", "shards", "filter", "join", "buckets")}
    data |= {"dataset": str(dataset), "split": found["split"] or ""}
    for item in sets:
        apply_set(data, item)
    return check(data, ViewJob, where=str(path))


def part_file(folder: Path, thousand: int) -> Path:
    """The file of shards 1000·thousand and the 999 after it."""
    return folder / f"{thousand:05d}.parquet"


def missing(folder: Path, shards: int) -> list[int]:
    """Shards whose part is not there. One listing."""
    there = {path.name for path in folder.glob("*.parquet")} if folder.is_dir() else set()
    return [s for s in range(shards) if part_file(folder, s // FOLDER_SHARDS).name not in there]


def is_built(dataset: Path, name: str, revision: str, shards: int) -> bool:
    """Whether a revision of a view is whole, and the one in use."""
    try:
        found = read_json(view_folder(dataset, name) / "view.json")
    except FileNotFoundError:
        return False
    folder = view_folder(dataset, name) / revision
    return bool(found.get("revision") == revision) and not missing(folder, shards)


def read_view(dataset: Path, name: str) -> dict[str, Any]:
    """view.json of NAME, or of NAME@REVISION. Raises UserError when there is none, saying which there are."""
    name, _, revision = name.partition("@")
    folder = view_folder(dataset, name)
    path = folder / revision / "view.json" if revision else folder / "view.json"
    try:
        found = read_json(path)
    except FileNotFoundError:
        there = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/view.json"))) or "none"
        old = ", ".join(sorted(path.parent.name for path in folder.glob("*/view.json")))
        raise UserError(
            f"{dataset}: no view {name}{f'@{revision}' if revision else ''}; "
            + (f"its revisions are: {old}" if revision and old else f"there are: {there}")
            + ". `semiocity view FILE` builds one"
        ) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}: no view of format {FORMAT}; build it again with `semiocity view`")
    return dict(found)


def check_reading(view: Mapping[str, Any], fields: Iterable[str], splits: Iterable[str], where: Any) -> None:
    """Raises UserError when a view (as in view.json) lacks a field or split."""
    for field in fields:
        if field not in view["fields"]:
            raise UserError(
                f"{where}: view {view['name']} has no field {field} (it has: {', '.join(view['fields'])}); add it to "
                "the view's fields and build the view again"
            )
    for split in splits:
        if split not in view["splits"]:
            there = ", ".join(view["splits"]) or "no splits at all"
            raise UserError(f"{where}: view {view['name']} has no rows of split {split}; it has {there}")


def check_fresh(dataset: Path, view: Mapping[str, Any]) -> None:
    """Refuse a view (as in view.json) whose columns have other bytes than it was built from; more shards than then are
    none of its business. Raises UserError with the command that builds it again."""
    for name, revision in view["columns"].items():
        if read_column_manifest(dataset, name, revision)["digest"] == view["digests"][name]:
            continue
        entries = shard_entries(dataset, name, revision)
        for part in view["parts"]:
            shards = range(part["first"], part["first"] + part["shards"])
            if shards.stop > len(entries) or source_digest([entries[s] for s in shards]) != part["sources"][name]:
                raise UserError(
                    f"{dataset}: view {view['name']}: column {name}/{revision} has changed since the view was built, "
                    f"within shards {shards.start:08d} to {shards.stop - 1:08d} (rows taken down, or tried again). "
                    + _remedy(dataset, view)
                )


def stale_views(dataset: Path) -> list[str]:
    """Names of the views in use that their columns no longer fit, such as after rows were taken down."""
    found = []
    for path in sorted(Path(dataset).glob("views/*/view.json")):
        try:
            check_fresh(dataset, read_view(dataset, path.parent.name))
        except UserError:
            found.append(path.parent.name)
    return found


def rebuilding(dataset: Path, name: str) -> str:
    """The command that builds a view again by the rule that it has."""
    folder = view_folder(dataset, name)
    near = os.path.relpath(folder)
    return f"semiocity view {folder if near.startswith('..') else near}"


def _remedy(dataset: Path, view: Mapping[str, Any]) -> str:
    again = rebuilding(dataset, view["name"])
    used = read_view(dataset, view["name"])["revision"]
    if used == view["revision"]:
        return f"`{again}` builds it again, from the same revisions"
    return (
        f"This is a former build, {view['revision']}; what began with it cannot go on with the same rows: begin "
        f"another run with {view['name']} as it is now (`{again}`, should that be stale too)"
    )


def source_digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over keys and bytes of some shards of a column, given by their entries."""
    found = hashlib.sha256()
    for entry in entries:
        found.update(f"{entry['shard']} {entry['keys_digest']} {entry['sha256']}\n".encode())
    return found.hexdigest()
