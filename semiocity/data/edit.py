"""Captions corrected by hand: a new revision of their column, in which only the shards with corrections are new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from semiocity.config import digest
from semiocity.data import csv_files
from semiocity.data.columns import Dataset
from semiocity.data.filter import LONGEST_TEXT
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import (
    BASE,
    EDIT,
    ShardPath,
    column_folder,
    complete,
    corrected,
    lineage,
    merge,
    missing,
    read_column_manifest,
    read_receipt,
)
from semiocity.data.relink import link_shard
from semiocity.data.shard import Head, ShardReader, ShardWriter
from semiocity.errors import UserError

VERSION = 1
HAND = "hand"
"""What the scalar `captioner` says of a corrected row."""


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


def edit(dataset: Path, edits: Mapping[str, str], owner: Owner, column: str = "caption") -> str:
    """Make the new revision current and return it. Correcting again what is corrected already does nothing.

    Raises UserError for a key that the dataset does not have, a row that was taken down, and a column without `text`.
    """
    opened = Dataset.open(dataset)
    opened.require([f"{column}.text"])
    old = opened.column(column)
    places = _places(opened, edits)
    first = read_receipt(ShardPath(old.folder, 0))
    assert first is not None
    content = digest(dict(edits), 64)
    revision = digest({"edit": VERSION, "of": old.revision, "edits": content})
    args = {"edits": content, "of": {"revision": old.revision, "stage": first["stage"], "model": first["model"]}}
    stage = {"name": EDIT, "version": VERSION, "args": args}
    folder = column_folder(Path(dataset), column, revision)
    for shard in range(opened.shards):
        path, source = ShardPath(folder, shard), ShardPath(old.folder, shard)
        with lease(path.lease, owner) as held:
            if not held:
                raise UserError(f"{path}: somebody works on it; try again later")
            if complete(path):
                continue
            if shard in places:
                _write(path, source, revision, stage, {key: edits[key] for key in places[shard]})
            else:
                link_shard(source, path, {"revision": revision, "stage": stage})
    merge(Path(dataset), column, revision)
    return revision


def follow(dataset: Path, column: str, revision: str, owner: Owner) -> None:
    """Bring the corrected revisions of a column up to `revision`, which has shards of rows that were added.

    Corrections are of rows that were there, so the new shards are the same in all of them.
    """
    last = corrected(dataset, column, revision)
    if last is None:
        return
    chain = lineage(dataset, column, last)
    chain = chain[: chain.index(revision) + 1]
    shards = read_column_manifest(dataset, column, revision)["shards"]
    for of, made in pairwise(reversed(chain)):
        folder = column_folder(dataset, column, made)
        stage = read_column_manifest(dataset, column, made)["stage"]
        for shard in missing(folder, shards):
            with lease(ShardPath(folder, shard).lease, owner) as held:
                if held and not complete(ShardPath(folder, shard)):
                    source = ShardPath(column_folder(dataset, column, of), shard)
                    link_shard(source, ShardPath(folder, shard), {"revision": made, "stage": stage})
        merge(dataset, column, made)


def _places(dataset: Dataset, edits: Mapping[str, str]) -> dict[int, list[str]]:
    """Shard → those of its keys that are corrected."""
    places: dict[int, list[str]] = {}
    left = set(edits)
    for shard in range(dataset.shards):
        reader = ShardReader(ShardPath(dataset.column(BASE).folder, shard))
        for row, key in enumerate(reader.keys):
            if key in left:
                if reader.tombstoned(row):
                    raise UserError(f"{dataset.path}: {key} was taken down; there is nothing to correct")
                places.setdefault(shard, []).append(key)
        left -= set(reader.keys)
        if not left:
            return places
    more = f", nor have they {len(left) - 1} more of the keys" if len(left) > 1 else ""
    raise UserError(f"{dataset.path}: no row has the key {min(left)}{more}")


def _write(path: ShardPath, source: ShardPath, revision: str, stage: dict[str, Any], edits: dict[str, str]) -> None:
    """The source's shard with these texts in place of its own; a row that had failed has one now."""
    receipt = read_receipt(source)
    assert receipt is not None
    head = Head(
        **{name: receipt[name] for name in ("column", "shard", "parents", "model", "execution", "fields", "scalars")},
        revision=revision,
        stage=stage,
    )
    with ShardReader(source) as reader, ShardWriter(path, head) as writer:
        for row, key in enumerate(reader.keys):
            scalars = reader.scalars(row)
            dead = reader.tombstoned(row)
            if key in edits:
                text = edits[key]
                mine = {"text": text[:LONGEST_TEXT], "short": text.splitlines()[0], "captioner": HAND}
                scalars |= {name: value for name, value in mine.items() if name in scalars}
                writer.add(key, {"text": ("txt", edits[key].encode())}, scalars)
            elif dead is not None:
                writer.tombstone(key, *dead, scalars)
            else:
                writer.add(key, reader.payloads(row), scalars)
        writer.publish()
