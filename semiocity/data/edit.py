"""Captions corrected by hand: a new revision of their column, in which only the shards with corrections are new.

The texts themselves are kept beside the columns (`corrections.py`): so a shard that is lost is made again, and so are
all corrections in another revision of the column, such as after everything was planned anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from semiocity.config import digest
from semiocity.data import corrections, csv_files
from semiocity.data.columns import Dataset
from semiocity.data.corrected import CorrectedRevision
from semiocity.data.corrections import Correction
from semiocity.data.find import find_keys
from semiocity.data.lease import Owner
from semiocity.data.manifest import (
    BASE,
    ShardPath,
    complete,
    merge,
    missing,
    read_column_manifest,
)
from semiocity.data.plan import Plan
from semiocity.data.state import EDIT
from semiocity.errors import UserError

VERSION = 1
SHOWN = 5


class Brought(NamedTuple):
    """What `bring` did."""

    revision: str
    corrections: int
    """Rows that have their corrected text in this revision."""
    other_picture: list[str]
    """Keys of rows whose picture is another than the text was written for."""
    gone: int
    """Corrections of rows that are no longer there."""


def read_edits(path: Path) -> dict[str, str]:
    """Key → text, from a CSV with the columns `key` and `text`, or from JSON lines with these two. Raises UserError."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            items = list(csv_files.dict_reader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv_files.Error) as error:
        raise UserError(f"{path}: {error}") from None
    edits: dict[str, str] = {}
    for number, item in enumerate(items, 1):
        key, text = (item.get(name) if isinstance(item, dict) else None for name in ("key", "text"))
        if not isinstance(key, str) or not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}: row {number}: needs `key` and `text`, both not empty")
        if edits.setdefault(key, text.strip()) != text.strip():
            raise UserError(f"{path}: row {number}: {key} is given two texts")
    return edits


def edit(
    dataset: Path,
    edits: Mapping[str, str],
    owner: Owner,
    column: str = "caption",
    carried: Sequence[str] = (),
) -> str:
    """Make the new revision current and return it; the present one when every row has its text already.

    `carried` are the revisions that the corrections come from. Raises UserError for a key that the dataset does not
    have, a row that was taken down, an empty text, a column without `text`, and one that has lost shards.
    """
    dataset = Path(dataset)
    opened = Dataset.open(dataset)
    opened.require([f"{column}.text"])
    if empty := sorted(key for key, text in edits.items() if not text.strip()):
        raise UserError(f"{empty[0]}: the text is empty; say what it is to be")
    old = opened.column(column)
    if gone := missing(old.folder, opened.shards):
        raise UserError(f"{ShardPath(old.folder, gone[0])}: missing; `semiocity repair {dataset}` says what to do")
    places = find_keys(opened, edits)
    if unknown := set(edits).difference(*places.values()):
        more = f", nor have they {len(unknown) - 1} more of the keys" if len(unknown) > 1 else ""
        raise UserError(f"{dataset}: no row has the key {min(unknown)}{more}")
    rows = _changes(opened, column, edits, places)
    if not rows:
        return old.revision
    content = digest({key: row.text for key, row in rows.items()}, 64)
    revision = digest({"edit": VERSION, "of": old.revision, "edits": content})
    made = read_column_manifest(dataset, column, old.revision)
    args = {"edits": content, "of": {"revision": old.revision, "stage": made["stage"], "model": made["model"]}}
    corrections.keep(dataset, column, revision, old.revision, rows, carried)
    new = CorrectedRevision(dataset, column, revision, {"name": EDIT, "version": VERSION, "args": args}, owner)
    for shard in range(opened.shards):
        if not complete(new.path(shard)):
            new.make(ShardPath(old.folder, shard))
    merge(dataset, column, revision)
    return revision


def bring(dataset: Path, column: str, revision: str, owner: Owner) -> Brought:
    """Correct in the present revision of a column what was corrected in `revision` and those that it was made of.

    Raises UserError when nothing was.
    """
    dataset = Path(dataset)
    history = corrections.history(dataset, column, revision)
    if not history:
        there = ", ".join(corrections.left_behind(dataset, column)) or "none"
        raise UserError(
            f"{dataset}: no corrections are kept of {column}/{revision}; other revisions with corrections that the "
            f"present one has not: {there}"
        )
    texts: dict[str, Correction] = {}
    for _, kept in reversed(history):
        texts |= kept.rows
    opened = Dataset.open(dataset)
    opened.require([f"{column}.text"])
    found = _rows_now(opened, column, find_keys(opened, texts))
    right = {key: texts[key].text for key, (_, *image) in found.items() if texts[key].fits(*image)}
    carried = [made for made, kept in history] + [made for _, kept in history for made in kept.carried]
    now = edit(dataset, right, owner, column, carried)
    return Brought(now, len(right), sorted(found.keys() - right.keys()), len(texts.keys() - found.keys()))


def _changes(
    dataset: Dataset, column: str, edits: Mapping[str, str], places: Mapping[int, Mapping[str, int]]
) -> dict[str, Correction]:
    """Those of the edits that change something, by key. Raises UserError for a row that was taken down."""
    found = _rows_now(dataset, column, places)
    if buried := sorted(edits.keys() - found.keys()):
        raise UserError(f"{dataset.path}: {buried[0]} was taken down; there is nothing to correct")
    wanted = {key: text.strip() for key, text in edits.items()}
    return {key: Correction(text, *found[key][1:]) for key, text in sorted(wanted.items()) if found[key][0] != text}


def _rows_now(
    dataset: Dataset, column: str, places: Mapping[int, Mapping[str, int]]
) -> dict[str, tuple[str | None, int | None, int | None]]:
    """Key → text in the column, crc32 of the picture, bytes of its file; of rows that are not taken down."""
    found = {}
    plan = None
    with suppress(UserError):
        plan = Plan.open(dataset.path, dataset.column(BASE).revision)
    for shard, rows in places.items():
        base, texts = dataset.reader(BASE, shard), dataset.reader(column, shard)
        entries = {} if plan is None else {row.key: row.entry for row in plan.rows(shard) if row.entry is not None}
        for key, row in rows.items():
            if base.tombstoned(row):
                continue
            data = texts.read(row, "text")
            image = base.column("image.crc32")[row] if base.has("image") else None
            size = entries[key].sizes.get("image") if key in entries else None
            found[key] = (None if data is None else data.decode(), image, size)
    return found
