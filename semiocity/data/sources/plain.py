"""The loader of sources with a file for each field of a row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiocity.data.images import Rejected
from semiocity.data.keys import printable
from semiocity.data.sources.base import Entry, FileSource, Raw, caption_bytes
from semiocity.data.sources.files import NotAllowed, open_below
from semiocity.errors import UserError

GIVEN = ("boxes", "relative_boxes", "rotation")
"""What an entry's `extra` may say of a Raw, besides the caption."""


def load(source: FileSource, entry: Entry) -> Raw:
    """The bytes of the entry's files, and what its `extra` says. Raises as `read_planned` does."""
    payloads: dict[str, Any] = {field: read_field(source, entry, field) for field in entry.files}
    given: dict[str, Any] = {name: entry.extra[name] for name in GIVEN if name in entry.extra}
    if "caption" in entry.extra:
        given["caption"] = caption_bytes(entry.extra["caption"])
    return Raw(**payloads, **given)


def read_field(source: FileSource, entry: Entry, field: str) -> bytes:
    """The bytes of one of the entry's files. Raises as `read_planned` does."""
    return read_planned(source.root, entry.files[field], entry.sizes[field], field, source.link_roots)


def read_planned(root: Path, name: str, planned: int, field: str, link_roots: Sequence[Path] = ()) -> bytes:
    """The bytes of a file that had `planned` bytes when the plan was made.

    Raises as `open_planned` does.
    """
    descriptor = open_planned(root, name, planned, field, link_roots)
    with os.fdopen(descriptor, "rb") as file:
        # What has grown since it was looked at need not fit into memory.
        data = file.read(planned + 1)
    if len(data) != planned:
        raise _changed(root, name, planned)
    return data


def open_planned(root: Path, name: str, planned: int, field: str, link_roots: Sequence[Path] = ()) -> int:
    """A descriptor, for reading, of a file that had `planned` bytes when the plan was made.

    Raises Rejected where it may not be read, or leads out of `root` and `link_roots` by now, and UserError when it is
    gone or has another size.
    """
    try:
        descriptor = open_below(root, name, link_roots)
    except NotAllowed as error:
        raise Rejected(error.reason, f"{field}: {printable(name)} {error}") from None
    except PermissionError:
        raise Rejected("unreadable", f"{field}: {printable(name)}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{root}: {printable(name)} is gone since the plan was made. Put it back, or run `semiocity pack --anew`"
        ) from None
    if os.fstat(descriptor).st_size != planned:
        os.close(descriptor)
        raise _changed(root, name, planned)
    return descriptor


def _changed(root: Path, name: str, planned: int) -> UserError:
    return UserError(
        f"{root}: {printable(name)} no longer has the {planned} bytes it had when the plan was made. "
        "Put it back, or run `semiocity pack --anew`"
    )
