"""What every source gives: entries when planning (on a login node, names and sizes only), payloads when packing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One row as a source lists it. Names are text from `keys.to_text`, relative to the source's root."""

    id: str
    """The picture's name in the source without extension; the key is made from it."""
    files: dict[str, str]
    """Logical field → file. Empty for a source that makes its rows."""
    sizes: dict[str, int]
    """Logical field → bytes of that file."""
    split: str
    extra: dict[str, Any]
    """Whatever the source needs to make the row; JSON."""

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
