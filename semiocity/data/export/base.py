"""What an exporter is: it writes the files of one shard at a time, then what spans them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from semiocity.config import Strict
from semiocity.data.columns import Dataset
from semiocity.data.export.selection import Selection
from semiocity.data.manifest import FOLDER_SHARDS

MANIFEST = "semiocity.json"
"""What an export holds and where it comes from."""

STATE = ".export"
"""Folder of an export's records and pieces; needed only to go on with it."""


class Options(Strict):
    """What a user may say beside fields and split. Each exporter refuses what it has no use for."""

    link: bool = False
    """Tars: link whole shards as they are instead of writing new ones split by split."""
    conditioning: str | None = None
    """imagefolder: COLUMN.FIELD of a second picture a row, for ControlNets."""
    metadata: str = "jsonl"
    """imagefolder: jsonl or csv."""


@dataclass(frozen=True)
class Written:
    """What `write` left in its folder."""

    paths: list[str]
    """Files and folders to publish, relative; each is published by one rename."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever `finish` needs of this shard; JSON."""
    known: dict[str, str] = field(default_factory=dict)
    """Path → sha256 of files that need not be read again to be known, such as links to shards."""


@dataclass(frozen=True)
class Part:
    """The record of one exported shard."""

    shard: int
    rows: dict[str, int]
    """Split → rows."""
    paths: list[dict[str, Any]]
    """{"path", "files", "bytes", "sha256" of a file}"""
    facts: dict[str, Any]


class Exporter(ABC):
    """One format. Equal selections and options give equal files."""

    version: ClassVar[int] = 1
    """Raised whenever the same input would give other files."""
    uses: ClassVar[tuple[str, ...]] = ()
    """Names of the options that it knows."""

    def __init__(self, selection: Selection, options: Options) -> None:
        """Raises UserError when the selection lacks what the format needs."""
        self.selection = selection
        self.options = options

    @classmethod
    @abstractmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        """Words for `parse_fields` when the user names no fields."""

    @abstractmethod
    def write(self, shard: int, folder: Path) -> Written:
        """Write the files of one shard below `folder`, under the names that they have in the export."""

    def finish(self, parts: Parts, out: Path) -> list[str]:
        """Write what spans shards, each file by rename; returns their relative paths."""
        return []


class Parts(ABC):
    """The records of all shards; they are read again at every iteration, so that none need be kept."""

    @abstractmethod
    def __iter__(self) -> Iterator[Part]: ...

    @abstractmethod
    def splits(self) -> list[str]:
        """Splits that have rows."""


def part_stem(shard: int) -> str:
    """Beginning of the relative paths of a shard's record and pieces."""
    return f"{STATE}/parts/{shard // FOLDER_SHARDS:05d}/{shard:08d}"
