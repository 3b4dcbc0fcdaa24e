"""What every source gives: entries when planning (on a login node, names and sizes only), payloads when packing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.config import Strict, canonical


class FileSource(Strict):
    """What every source has that reads files."""

    root: Path
    """The dataset's folder. Not part of the dataset: the same files elsewhere give the same shards."""
    link_roots: tuple[Path, ...] = ()
    """Folders outside `root` that symbolic links may lead into; all other links out of it are rejected."""


def each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    """For pydantic: a list of options that is not empty and repeats none."""
    if not value or len(set(value)) != len(value):
        raise ValueError("one or more are expected, each once")
    return value


class Class(NamedTuple):
    """One class of a dataset as it is published. Its id in the shards is its place in the module's CLASSES."""

    name: str
    color: tuple[int, int, int]
    """Red, green, blue."""
    ids: tuple[int, ...] | None = None
    """Ids in the dataset's label maps; None: its place."""
    train_id: int | None = None
    """Its id where scores are computed on fewer classes."""


def class_table(text: str) -> tuple[Class, ...]:
    """Classes from lines `id red green blue train_id name`, where the train id is `-` for none."""
    rows = [line.split(maxsplit=5) for line in text.strip().splitlines()]
    return tuple(
        Class(name, (int(r), int(g), int(b)), (int(raw),), None if train == "-" else int(train))
        for raw, r, g, b, train, name in rows
    )


def name_list(text: str) -> tuple[str, ...]:
    """Names set apart by commas, in any number of lines."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def caption_bytes(text: str) -> bytes:
    """A caption as a file would hold it; what is no text stays none, and is rejected when it is packed."""
    return text.encode("utf-8", "surrogatepass")


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
    """Whatever the source's `load` needs to find or make the row; JSON. The loader of plain files takes `caption`
    (text), and `boxes`, `relative_boxes` and `rotation` as Raw has them."""
    scalars: dict[str, Any] = {}  # noqa: RUF012
    """Values for the index: those of the source's SCALARS, and `license` and `origin` where a row has its own."""

    @property
    def name(self) -> str:
        """What rejections call this row: the picture's file where there is one."""
        return self.files.get("image", self.id)

    def with_caption(self, text: str) -> Entry:
        """The same row with a caption that the loader of plain files gives."""
        size = len(caption_bytes(text))
        return self._replace(extra={**self.extra, "caption": text}, sizes={**self.sizes, "caption": size})

    def with_boxes(self, boxes: list[dict[str, Any]], relative: bool = False) -> Entry:
        """The same row with boxes, as Raw has them, that the loader of plain files gives."""
        extra = {**self.extra, "boxes": boxes, **({"relative_boxes": True} if relative else {})}
        return self._replace(extra=extra, sizes={**self.sizes, "boxes": len(canonical(boxes))})


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
    first_instance: int = 1
    """Ids in the instance map that are lower mean none."""
    label_colors: dict[tuple[int, int, int], int] | None = None
    """Colour → the dataset's id, where the label map is in colours although the recipe's label.encoding says ids."""
    caption: bytes | None = None
    boxes: list[dict[str, Any]] | None = None
    """Objects: {"label": name, "bbox": [x, y, width, height], "attributes": {...}}; in pixels of the picture as it
    comes (after its EXIF orientation), x to the right and y down."""
    relative_boxes: bool = False
    """Whether the boxes are fractions of the picture's width and height instead."""
    rotation: int = 0
    """Degrees counterclockwise (0, 90, 180, 270) that bring the picture upright, with its maps and boxes."""
    scalars: dict[str, Any] = field(default_factory=dict)
