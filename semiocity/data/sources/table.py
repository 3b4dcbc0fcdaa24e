"""A table of pictures: CSV or parquet, with a column of image paths or of image bytes, and whatever else is known.

Paths are relative to the source's root. Text columns of the recipe name what the columns are; the rest is left alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, model_validator

from semiocity.data import csv_files
from semiocity.data.keys import fraction_of, printable, to_text
from semiocity.data.sources import columnar
from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.columnar import Table
from semiocity.data.sources.files import Found, check_root, look_up, open_below, split_name, walk
from semiocity.data.sources.scalars import Scalars, columns_of, first_text, row_facts, types_of, values_of
from semiocity.data.sources.scalars import split_name as split_of
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image",)
CLASSES = None
IGNORE_ID = None
LOADER = "semiocity.data.sources.cells:opened"


class TableSource(FileSource):
    """Rows of a CSV or parquet file."""

    kind: Literal["table"] = "table"
    table: str = "*.csv"
    """File name below root; `*` and `?` match several, which are read in sorted order: `parts/*.parquet`."""
    image: str = "image"
    """Column of paths below root; in parquet also of encoded bytes, or of {bytes, path} as `datasets` writes them."""
    label: str | None = None
    """Column of label maps, as paths or bytes."""
    instance: str | None = None
    """Column of instance maps, as paths or bytes."""
    caption: str | None = None
    """Column of captions: the text itself; of a list of texts the first counts."""
    caption_file: str | None = None
    """Column of paths of text files instead."""
    id: str | None = None
    """Column of names that keys are made from. By default the image's path without extension, as in `folder`, and
    TABLE/ROW where the table holds the bytes."""
    split: str | None = None
    """Column of splits. By default `val_fraction` of the rows, by a hash of their ids, are val and the others train."""
    splits: dict[str, str] = Field({})
    """Splits to rename; validation, valid and dev are val without being told (`scalars.USUAL_SPLITS`)."""
    val_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    license: str | None = None
    """Column of each row's licence; where it is empty, the recipe's counts."""
    origin: str | None = None
    """Column of where each picture is from: an address, a name."""
    scalars: Scalars = Field({})
    """Further columns for the index, with their types: `scalars = {score = "float"}`."""
    delimiter: str = Field(",", min_length=1, max_length=1)
    """Of CSV files."""

    @model_validator(mode="after")
    def _once(self) -> TableSource:
        if self.caption and self.caption_file:
            raise ValueError("caption and caption_file: one of them")
        if self.split and self.val_fraction:
            raise ValueError("val_fraction has no effect where a column gives the split")
        return self

    @property
    def scalar_types(self) -> dict[str, Any]:
        """Scalars that this source adds to every row."""
        return types_of(self.scalars)

    def columns(self) -> dict[str, str]:
        """Column → the key of the recipe that names it."""
        keys = ("image", "label", "instance", "caption", "caption_file", "id", "split", "license", "origin")
        named = {getattr(self, key): key for key in keys if getattr(self, key)}
        return {**dict.fromkeys(columns_of(self.scalars), "scalars"), **named}


def entries(source: TableSource) -> Iterator[Entry | Rejection]:
    """One entry a row. Raises UserError when there is no such table or column."""
    check_root(source.root)
    tables = [
        found
        for found in walk(source.root, also=source.link_roots)
        if fnmatchcase(found.name, source.table) and found.name.count("/") == source.table.count("/")
    ]
    if not tables:
        raise UserError(f"source.table: no file below {source.root} matches {source.table}")
    for found in tables:
        if found.problem:
            yield found.problem
        elif found.extension == "parquet":
            yield from _parquet_rows(source, found)
        else:
            try:
                yield from _csv_rows(source, found)
            except OSError as error:
                raise UserError(f"{source.root / printable(found.name)}: {error.strerror}") from None


def _csv_rows(source: TableSource, found: Found) -> Iterator[Entry | Rejection]:
    where = source.root / printable(found.name)
    with os.fdopen(open_below(source.root, found.name, source.link_roots), "rb") as file:
        # Names of files may be in any encoding: what is no UTF-8 comes through as it is on disk.
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv_files.dict_reader(text, delimiter=source.delimiter, strict=True)
        try:
            names = reader.fieldnames or ()
            table = Table(found, 0, dict.fromkeys(names, "text"), {})
            columnar.check_columns(table, source.columns(), source.root)
            for number, row in enumerate(reader):
                if None in row or None in row.values():
                    raise UserError(f"{where}: line {reader.line_num}: not the {len(names)} cells of the first line")
                yield _row(source, table, number, row)
        except csv_files.Error as error:
            raise UserError(f"{where}: after line {reader.line_num}: {error}") from None


def _parquet_rows(source: TableSource, found: Found) -> Iterator[Entry | Rejection]:
    table = columnar.open_table(source, found)
    columnar.check_columns(table, source.columns(), source.root)
    small = [name for name in source.columns() if table.types[name] != "image"]
    for number, row in enumerate(columnar.read_columns(source, table, small)):
        yield _row(source, table, number, row)


def _row(source: TableSource, table: Table, number: int, row: Mapping[str, Any]) -> Entry | Rejection:
    place = f"{printable(table.found.name)}, row {number}"
    files: dict[str, str] = {}
    sizes: dict[str, int] = {}
    extra: dict[str, Any] = {}
    pictures = {"image": source.image, "label": source.label, "instance": source.instance}
    for field, column in {**pictures, "caption": source.caption_file}.items():
        if column is None:
            continue
        if table.types[column] == "image":
            extra.setdefault("cells", {})[field] = column
            sizes[field] = table.mean_bytes.get(column, 0)
            continue
        name = row[column]
        if not name:
            if field == "image":
                return Rejection(place, "image_missing", f"column {column} is empty")
            continue
        name = str(name).removeprefix("./")
        listed = look_up(source.root, name, source.link_roots)
        if listed is None:
            return Rejection(place, f"{field}_missing", printable(name))
        if listed.problem:
            return listed.problem
        files[field], sizes[field] = name, listed.size
    if "cells" in extra:
        extra |= {"file": table.found.name, "size": table.found.size, "row": number}
    if source.caption and (text := first_text(row[source.caption])):
        extra["caption"], sizes["caption"] = text, len(text)
    id = to_text(str(row[source.id]).encode("utf-8", "surrogateescape")) if source.id else None
    id = id or (split_name(files["image"])[0] if "image" in files else f"{table.found.stem}/{number:08d}")
    try:
        split = split_of(row[source.split], source.splits) if source.split else _split(source, id)
    except UserError as error:
        return Rejection(place, "split_name", str(error))
    try:
        scalars = values_of(source.scalars, row)
    except ValueError as error:
        return Rejection(place, "scalar_value", str(error))
    scalars |= row_facts(row, {"license": source.license, "origin": source.origin})
    return Entry(id, files, sizes, split, extra, scalars)


def _split(source: TableSource, id: str) -> str:
    return "val" if fraction_of(id, "split") < source.val_fraction else "train"
