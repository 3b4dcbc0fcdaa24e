"""Where the files of a dataset lie, which version of the format they have, and which shards are there.

    plans/REVISION/plan.json                         what `pack` is to do
    columns/COLUMN/current.json                      which revision of the column the dataset uses
    columns/COLUMN/REVISION/manifest.json            totals of the column, one line for each thousand shards
    columns/COLUMN/REVISION/receipts.00000.HASH.json the receipts of shards 0 to 999 in one file
    columns/COLUMN/REVISION/00000/00000012.json      a shard's receipt, beside its .tar and .parquet
    manifest.json                                    the dataset: recipe, digest, columns, counts

Login-node code: standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import digest, read_json

FORMAT = 2
"""Version of shards, receipts, plans and manifests. Older data are refused with the command that upgrades them."""

BASE = "base"
"""The column that `pack` makes; every other column has its shards and its keys."""

FOLDER_SHARDS = 1000
"""Shards in one folder, so that no directory grows without bound."""

GALLERY = ".browse"
"""Where a gallery keeps its index in the dataset's folder. It holds keys and captions: it goes when rows
are taken down."""

COUNTS = "buckets"
"""Folder of rows counted by aspect bucket, for trainings without a saved view; made again where it is missing."""

IMPORTS = "imports"
"""Folder of what was imported, pinned."""

EDITS = "edits"
"""Folder of the texts that were corrected by hand."""

GATHERED = ".gathered"
"""In the folder of a revision: what a reduce stage that is not done has read of other columns. It holds keys: it goes
when rows are taken down."""

SUFFIXES = (".tar", ".parquet", ".json")


@dataclass(frozen=True)
class ShardPath:
    """The three files of one shard of one column revision, its lease and its journal."""

    folder: Path
    """…/columns/COLUMN/REVISION"""
    shard: int

    @property
    def stem(self) -> str:
        return f"{self.shard:08d}"

    @property
    def parent(self) -> Path:
        """The folder of a thousand shards that this one lies in."""
        return thousand_folder(self.folder, self.shard // FOLDER_SHARDS)

    @property
    def tar(self) -> Path:
        return self.parent / f"{self.stem}.tar"

    @property
    def parquet(self) -> Path:
        return self.parent / f"{self.stem}.parquet"

    @property
    def receipt(self) -> Path:
        return self.parent / f"{self.stem}.json"

    @property
    def lease(self) -> Path:
        return self.parent / f"{self.stem}.lease"

    @property
    def journal(self) -> Path:
        """What is done of the shard while it is in the making (`semiocity.data.journal`)."""
        return self.parent / f".{self.stem}.journal.tmp"

    def __str__(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}/{self.stem}"


def column_folder(dataset: Path, column: str, revision: str) -> Path:
    """The folder of one revision of a column."""
    return Path(dataset) / "columns" / column / revision


def thousand_folder(folder: Path, thousand: int) -> Path:
    """The folder of shards 1000 · `thousand` and following, in the folder of a column's revision."""
    return folder / f"{thousand:05d}"


def gallery_state(facts: Mapping[str, Any]) -> str:
    """Begins the name of a gallery's index: changes with what the dataset's manifest says of columns and classes."""
    columns = {name: [column["revision"], column["digest"]] for name, column in facts["columns"].items()}
    return digest([columns, [spec["name"] for spec in facts["recipe"]["classes"] or ()]])


def dataset_of(path: Path) -> Path:
    """The dataset that a file below it belongs to."""
    for parent in path.parents:
        if parent.name in ("columns", "plans", "views", IMPORTS):
            return parent.parent
    return path.parent


def check_format(found: Any, where: Path) -> None:
    """Refuse what another version of the format wrote. Raises UserError."""
    number = found.get("format") if isinstance(found, dict) else None
    if number == FORMAT:
        return
    if isinstance(number, int) and number > FORMAT:
        raise UserError(f"{where}: format {number}; this Semiocity reads up to {FORMAT}. Use a newer Semiocity")
    if isinstance(number, int) and number > 0:
        raise UserError(f"{where}: format {number}, now it is {FORMAT}. Run `semiocity upgrade {dataset_of(where)}`")
    raise UserError(f"{where}: no file of format {FORMAT} (its format is {number!r}). Remove it and make it again")


def read_receipt(path: ShardPath) -> dict[str, Any] | None:
    """A shard's receipt, or None when it has none. Raises UserError when it is damaged or of another format."""
    try:
        receipt = read_json(path.receipt)
    except FileNotFoundError:
        return None
    check_format(receipt, path.receipt)
    return receipt


def complete(path: ShardPath) -> bool:
    """Whether receipt, tar and parquet of a shard are there."""
    return path.receipt.exists() and path.tar.exists() and path.parquet.exists()


def missing(folder: Path, shards: int) -> list[int]:
    """Numbers below `shards` for which receipt, tar and parquet are not all there. One listing a thousand shards."""
    absent: list[int] = []
    for first in range(0, shards, FOLDER_SHARDS):
        try:
            names = set(os.listdir(thousand_folder(folder, first // FOLDER_SHARDS)))  # noqa: PTH208, half a Path's time
        except FileNotFoundError:
            names = set()
        for shard in range(first, min(first + FOLDER_SHARDS, shards)):
            stem = f"{shard:08d}"
            if any(stem + suffix not in names for suffix in SUFFIXES):
                absent.append(shard)
    return absent
