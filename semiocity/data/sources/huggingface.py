"""What the library `datasets` leaves on disk: `save_to_disk` folders, and folders of parquet as the Hub has them.

Both are read through pyarrow alone. `datasets` itself is not needed, and no code of a dataset is ever executed: a
folder that holds a loading script holds no rows for us.

    save_to_disk     [dataset_dict.json, SPLIT/] state.json, dataset_info.json, data-00000-of-00002.arrow
    parquet          data/train-00000-of-00002.parquet, or SPLIT/0000.parquet
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from semiocity.data.keys import fraction_of, printable, to_text
from semiocity.data.sources import columnar
from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.columnar import Table
from semiocity.data.sources.files import Found, check_root
from semiocity.data.sources.scalars import (
    USUAL_SPLITS,
    Scalars,
    columns_of,
    row_facts,
    split_name,
    typed,
    types_of,
)
from semiocity.errors import UserError
from semiocity.files import read_json

VERSION = 1
FIELDS = ("image",)
CLASSES = None
IGNORE_ID = None
LOADER = "semiocity.data.sources.cells:opened"

PARTS = ("data", "part", "cache")
"""What files are named for that hold rows of any split."""
SHARD = re.compile(r"(?P<split>[A-Za-z0-9_]+(?:[._-][A-Za-z0-9_]+)*?)-\d+-of-\d+(-[0-9a-f]+)?")


class HuggingfaceSource(FileSource):
    """A folder written by `datasets`, or fetched from the Hub as parquet."""

    kind: Literal["huggingface"] = "huggingface"
    below: str = ""
    """Folder below root, where one of several configurations is wanted."""
    image: str | None = None
    """Column of pictures. By default the only one that holds pictures and is not named by another key."""
    label: str | None = None
    """Column of label maps, as pictures."""
    instance: str | None = None
    """Column of instance maps, as pictures."""
    caption: str | None = None
    """Column of captions; of a list of texts the first counts."""
    id: str | None = None
    """Column of names that keys are made from. By default SPLIT/ROW, as `datasets` numbers rows."""
    splits: dict[str, str] = Field({})
    """Splits to rename; validation, valid and dev are val without being told (`scalars.USUAL_SPLITS`)."""
    only: tuple[str, ...] | None = None
    """Splits to take, by their names after renaming; all by default."""
    val_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Where there is no split val: this share of train, by a hash of the ids, becomes it."""
    license: str | None = None
    """Column of each row's licence; where it is empty, the recipe's counts."""
    origin: str | None = None
    """Column of where each picture is from: an address, a name."""
    scalars: Scalars = Field({})
    """Further columns for the index, with their types. A class label is its name as "str", its number as "int"."""

    @model_validator(mode="after")
    def _inside(self) -> HuggingfaceSource:
        if self.below.startswith("/") or ".." in self.below.split("/"):
            raise ValueError("below: a folder below source.root is expected")
        return self

    @property
    def scalar_types(self) -> dict[str, Any]:
        """Scalars that this source adds to every row."""
        return types_of(self.scalars)

    def small_columns(self) -> dict[str, str]:
        """Columns read while planning → the key of the recipe that names them."""
        named = {getattr(self, key): key for key in ("id", "license", "origin") if getattr(self, key)}
        return {**dict.fromkeys(columns_of(self.scalars), "scalars"), **named}


def entries(source: HuggingfaceSource) -> Iterator[Entry | Rejection]:
    """One entry a row. Raises UserError when the folder holds no such dataset, or a column is missing."""
    root = check_root(source.root)
    columnar.need_pyarrow()
    _refuse_views(root / source.below)
    files: list[tuple[str, Found]] = []
    for found in columnar.find(source, source.below):
        if isinstance(found, Rejection):
            yield found
        elif not _is_cache(found.name):
            files.append((_split_of(source, found), found))
    names = {split for split, _ in files}
    if not files:
        raise UserError(
            f"source.root: {root / source.below} holds neither *.parquet nor data-*.arrow; a folder of `save_to_disk` "
            "or of parquet files is expected"
        )
    if missing := set(source.only or ()) - names:
        raise UserError(f"source.only: no split {sorted(missing)[0]}; there are {', '.join(sorted(names))}")
    carve = 0.0 if "val" in names else source.val_fraction
    next_row = dict.fromkeys(names, 0)
    for split, found in sorted(files, key=lambda item: (item[0], item[1].name)):
        if source.only is None or split in source.only:
            table = columnar.open_table(source, found)
            yield from _rows(source, table, split, next_row[split], carve)
            next_row[split] += table.rows


def _rows(source: HuggingfaceSource, table: Table, split: str, first: int, carve: float) -> Iterator[Entry | Rejection]:
    cells = _cells(source, table)
    small = source.small_columns()
    columnar.check_columns(table, small, source.root)
    features = table.features or _saved(source.root / table.found.name, "dataset_info.json").get("features")
    known = features if isinstance(features, dict) else {}
    names = {column: _class_names(known.get(column)) for column in columns_of(source.scalars)}
    sizes = {field: table.mean_bytes.get(column, 0) for field, column in cells.items()}
    for number, row in enumerate(columnar.read_columns(source, table, list(small))):
        place = f"{printable(table.found.name)}, row {number}"
        given = str(row[source.id] or "") if source.id else ""
        id = to_text(given.encode("utf-8", "surrogateescape")) or f"{split}/{first + number:08d}"
        try:
            scalars = _scalars(source, row, names)
        except ValueError as error:
            yield Rejection(place, "scalar_value", str(error))
            continue
        scalars |= row_facts(row, {"license": source.license, "origin": source.origin})
        own = "val" if split == "train" and fraction_of(id, "split") < carve else split
        extra = {"file": table.found.name, "size": table.found.size, "row": number, "cells": cells}
        yield Entry(id, {}, sizes, own, extra, scalars)


def _cells(source: HuggingfaceSource, table: Table) -> dict[str, str]:
    """Field → column, for what is read when packing."""
    wanted = {field: getattr(source, field) for field in ("image", "label", "instance", "caption")}
    cells = {field: column for field, column in wanted.items() if column}
    columnar.check_columns(table, {column: field for field, column in cells.items()}, source.root)
    pictures = [name for name, kind in table.types.items() if kind == "image"]
    if "image" not in cells:
        free = [name for name in pictures if name not in cells.values()]
        if len(free) != 1:
            where = source.root / printable(table.found.name)
            raise UserError(
                f"source.image: {where} has {len(free)} columns that may hold the pictures "
                f'({", ".join(free) or "none"}); name one: source.image = "COLUMN"'
            )
        cells = {"image": free[0], **cells}
    for field, column in cells.items():
        kinds = ("text", "texts") if field == "caption" else ("image",)
        if table.types[column] not in kinds:
            raise UserError(
                f"source.{field}: column {column!r} of {source.root / printable(table.found.name)} holds no "
                f"{'text' if field == 'caption' else 'encoded pictures'}; columns that do: "
                f"{', '.join(n for n, k in table.types.items() if k in kinds) or 'none'}"
            )
    return cells


def _class_names(feature: Any) -> list[str] | None:
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return [str(name) for name in feature["names"]]
    return None


def _scalars(
    source: HuggingfaceSource, row: Mapping[str, Any], names: Mapping[str, list[str] | None]
) -> dict[str, Any]:
    """The declared scalars, classes by name where text is asked for. Raises ValueError that names the column."""
    found = {}
    for name, spec in source.scalars.items():
        column = spec.column or name
        known, value = names[column], row[column]
        if known is not None and spec.type == "str" and isinstance(value, int):
            if not -1 <= value < len(known):
                raise ValueError(f"column {column}: {value} is no class of {len(known)}")
            value = None if value < 0 else known[value]  # -1 is no class, as in `datasets`
        found[name] = typed(value, spec.type, column)
    return found


def _split_of(source: HuggingfaceSource, found: Found) -> str:
    """The split that a file belongs to, as `datasets` sees it: by its name, else a folder's, else train."""
    folder, _, last = found.name.removeprefix(source.below).lstrip("/").rpartition("/")
    stem = last.rpartition(".")[0]
    shard = SHARD.fullmatch(stem)
    if shard and shard["split"] not in PARTS:
        return split_name(shard["split"], source.splits)
    for part in reversed([*folder.split("/"), stem]):
        for word in re.split(r"[^A-Za-z]+", part.lower()):
            if word in USUAL_SPLITS or word in ("train", "val", "test"):
                return split_name(word, source.splits)
    if shard and folder:  # of any name, as `save_to_disk` makes folders
        return split_name(folder.rpartition("/")[2], source.splits)
    return split_name(_saved(source.root / found.name, "state.json").get("_split") or "train", source.splits)


def _is_cache(name: str) -> bool:
    """Whether an Arrow file is what `map` and the like left behind, which `datasets` does not load either."""
    last = name.rpartition("/")[2]
    return last.startswith(("cache-", "tmp")) and last.endswith(".arrow")


def _refuse_views(folder: Path) -> None:
    """Older `save_to_disk` kept a selection beside the rows; reading the rows alone would give others."""
    for state in [folder / "state.json", *folder.glob("*/state.json")]:
        if state.is_file() and read_json(state).get("_indices_data_files"):
            raise UserError(
                f"{state}: saved with an index of rows (select, shuffle); load it with `datasets`, call "
                "flatten_indices() and save it again"
            )


def _saved(file: Path, name: str) -> dict[str, Any]:
    """What `save_to_disk` wrote in `name` beside the rows; nothing where it did not write them."""
    try:
        known = read_json(file.parent / name)
    except FileNotFoundError:
        return {}
    return known if isinstance(known, dict) else {}
