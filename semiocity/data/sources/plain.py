"""The loader of sources with a file for each field of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semiocity.data.images import Rejected
from semiocity.data.keys import printable, to_bytes
from semiocity.data.sources.base import Entry, FileSource, Raw
from semiocity.data.sources.files import read_below, size_below
from semiocity.errors import UserError

GIVEN = ("boxes", "relative_boxes", "rotation")
"""What an entry's `extra` may say of a Raw, besides the caption."""


def load(source: FileSource, entry: Entry) -> Raw:
    """The bytes of the entry's files, and what its `extra` says. Raises as `read_planned` does."""
    payloads: dict[str, Any] = {field: read_field(source, entry, field) for field in entry.files}
    given: dict[str, Any] = {name: entry.extra[name] for name in GIVEN if name in entry.extra}
    if "caption" in entry.extra:
        given["caption"] = to_bytes(entry.extra["caption"])
    return Raw(**payloads, **given)


def read_field(source: FileSource, entry: Entry, field: str) -> bytes:
    """The bytes of one of the entry's files. Raises as `read_planned` does."""
    return read_planned(source.root, entry.files[field], entry.sizes[field], field)


def read_planned(root: Path, name: str, planned: int, field: str) -> bytes:
    """The bytes of a file that had `planned` bytes when the plan was made.

    Raises Rejected where it may not be read, and UserError when it is gone or has another size.
    """
    try:
        # The size first: what has grown since the plan need not fit into memory.
        if size_below(root, name) == planned:
            data = read_below(root, name)
            if len(data) == planned:
                return data
    except PermissionError:
        raise Rejected("unreadable", f"{field}: {printable(name)}") from None
    except FileNotFoundError:
        raise UserError(
            f"{root}: {printable(name)} is gone since the plan was made. Run `semiocity pack` again: it plans anew"
        ) from None
    raise UserError(
        f"{root}: {printable(name)} no longer has the {planned} bytes it had when the plan was made. "
        "Run `semiocity pack` again: it plans anew"
    )
