"""What every source gives: entries when planning (on a login node, names and sizes only), payloads when packing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.config import Strict


class FileSource(Strict):
    """What every source has that reads files."""

    root: Path
    """The dataset's folder. Not part of the dataset: the same files elsewhere give the same shards."""
    link_roots: tuple[Path, ...] = ()
    """Folders outside `root` that symbolic links may lead into; all other links out of it are rejected."""


class Entry(NamedTuple):
    """One row as a source lists it. Names are text from `keys.to_text`, relative to the source's root."""

    id: str
    """The picture's name in the source without extension; the key is made from it."""
    files: dict[str, str]
    """Logical field → file. Empty for a source that makes its rows, or whose files hold many rows each."""
    sizes: dict[str, int]
    """Logical field → bytes (as far as they are known) for each field that this row has. Empty for a source that makes
    its rows: it has what it promises."""
    split: str
    extra: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """Whatever the source's `load` needs to find or make the row; JSON."""
    scalars: dict[str, Any] = {}  # noqa: RUF012
    """Values for the index: those of the source's SCALARS, and `license` and `origin` where a row has its own."""

    @property
    def name(self) -> str:
        """What rejections call this row: the picture's file where there is one."""
        return self.files.get("image", self.id)


class Rejection(NamedTuple):
    """A file that is not packed, with a reason of `reasons.REASONS`."""

    id: str
    reason: str
    detail: str


@dataclass
class Raw:
    """A row as its source has it: encoded bytes, or arrays for a source that makes its rows.

    Arrays: image uint8 [H, W, 3], label uint8 [H, W], instance uint16 [H, W].
    """

    image: Any
    label: Any = None
    instance: Any = None
    caption: bytes | None = None
    scalars: dict[str, Any] = field(default_factory=dict)
