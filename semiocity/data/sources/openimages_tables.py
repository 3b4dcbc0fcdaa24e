"""Open Images' CSV tables, known by their headers, read line by line and joined in files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from semiocity.data import csv_files
from semiocity.data.sources.files import walk
from semiocity.errors import UserError

BUCKETS = 256
SIEVE_BITS = 27

HEADERS: dict[str, tuple[str, ...]] = {
    "images": ("ImageID", "Subset", "OriginalURL", "License"),
    "boxes": ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"),
    "labels": ("ImageID", "Source", "LabelName", "Confidence"),
    "classes": ("LabelName", "DisplayName"),
}
"""Kind of table → columns that it has at least; the first that fits."""
OTHERS = ("MaskPath", "LabelName1", "LabelName2")
"""Columns of tables that are not read: segmentations, relationships."""

Line = dict[str, str]


def find_tables(root: Path, also: Iterable[Path]) -> dict[str, list[str]]:
    """Kind of table → CSV files below the root, in order of names."""
    tables: dict[str, list[str]] = {kind: [] for kind in HEADERS}
    for found in walk(root, also=tuple(also)):
        if found.extension == "csv" and found.problem is None:
            kind = _kind(_header(root / found.name))
            if kind is not None:
                tables[kind].append(found.name)
    return tables


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            return next(csv_files.reader(file), [])
        except csv_files.Error:
            return []  # no table of ours


def _kind(header: list[str]) -> str | None:
    if not any(name in header for name in OTHERS):
        for kind, wanted in HEADERS.items():
            if all(name in header for name in wanted):
                return kind
    # The descriptions of the boxable classes came without a header until v7.
    return "classes" if len(header) == 2 and header[0].startswith(("/m/", "/g/", "/t/")) else None


def read_table(path: Path, there: Container[str]) -> Iterator[Line]:
    """The lines of a table by their columns, as far as their ImageID is in `there`.

    Raises UserError for a line that has too few columns or is no CSV.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv_files.reader(file)
        try:
            header: list[str] = next(lines, [])
            place, width = header.index("ImageID"), len(header)
            for line in lines:
                if len(line) < width:
                    if not line:
                        continue
                    raise UserError(f"{path}: line {lines.line_num}: {len(line)} columns, the header has {width}")
                if line[place] in there:
                    yield dict(zip(header, line, strict=False))
        except csv_files.Error as error:
            raise UserError(f"{path}: line {lines.line_num}: no CSV: {error}") from None


def read_classes(path: Path) -> Iterator[tuple[str, str]]:
    """(LabelName, DisplayName), with or without a header."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line in csv_files.reader(file):
            if len(line) >= 2 and line[0] != "LabelName":
                yield line[0], line[1]


class Sieve:
    """Which ids may be among those added: never wrong when it says no, in 16 MB whatever their number."""

    def __init__(self) -> None:
        self._bits = bytearray(1 << (SIEVE_BITS - 3))

    def add(self, id: str) -> None:
        place = self._place(id)
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, id: object) -> bool:
        place = self._place(str(id))
        return bool(self._bits[place >> 3] >> (place & 7) & 1)

    @staticmethod
    def _place(id: str) -> int:
        return zlib.crc32(id.encode("utf-8", "surrogateescape")) & ((1 << SIEVE_BITS) - 1)


class Buckets:
    """Facts about images, spread over files by a hash of the image's id: a small part is in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[int, IO[str]] = {}

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, id: str, kind: str, fact: list[Any]) -> None:
        """Keep a fact (JSON) about an image."""
        bucket = zlib.crc32(id.encode("utf-8", "surrogateescape")) >> 24
        if bucket not in self._files:
            path = self._folder / f"{bucket:02x}.jsonl"
            self._files[bucket] = self._stack.enter_context(path.open("x", encoding="ascii"))
        self._files[bucket].write(json.dumps([id, kind, fact]) + "\n")

    def images(self) -> Iterator[tuple[str, dict[str, list[list[Any]]]]]:
        """(id, kind → its facts in the order they were added), every image once. Nothing can be added any more."""
        self._stack.close()
        for path in sorted(self._folder.glob("*.jsonl")):
            known: dict[str, dict[str, list[list[Any]]]] = {}
            with path.open(encoding="ascii") as lines:
                for id, kind, fact in map(json.loads, lines):
                    known.setdefault(id, {}).setdefault(kind, []).append(fact)
            path.unlink()
            yield from sorted(known.items())
