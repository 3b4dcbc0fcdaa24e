"""The members of a tar and where their bytes lie, found without trusting it. Standard library only.

Headers are read one by one and their checksums compared; the bytes between are skipped. A cut or a damaged header is
found where it is, also when it lies on the border between two samples, where most readers see a shorter tar.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from semiocity.data.keys import to_text

BLOCK = 512
LONGEST_NAME = 1 << 20
"""Bytes of an extended header; more is no name."""


class Member(NamedTuple):
    """One regular file, or what stands in its place."""

    name: str
    offset: int
    """Where its bytes begin in the tar."""
    size: int
    regular: bool = True
    """False for links, devices and sparse files, which are not read."""


class Damage(NamedTuple):
    """Where reading had to end."""

    offset: int
    what: str


def members(descriptor: int) -> Iterator[Member | Damage]:
    """Every file of an open tar (USTAR, GNU, pax), in its order; a Damage is the last thing there is.

    Folders are left out. Names come as `keys.to_text` gives them.
    """
    end = os.fstat(descriptor).st_size
    at = 0
    longer: dict[str, str] = {}
    while True:
        head = os.pread(descriptor, BLOCK, at)
        if len(head) < BLOCK:
            yield Damage(at, "cut: the blocks that close a tar are missing")
            return
        if not head.strip(b"\0"):
            if at == 0 and end > 2 * BLOCK and os.pread(descriptor, BLOCK, BLOCK).strip(b"\0"):
                yield Damage(at, "begins with an empty block")
            return
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            yield Damage(at, f"no header: {error}")
            return
        start = at + BLOCK
        size = int(longer.pop("size", info.size)) if info.type not in _EXTENDED else info.size
        if info.size < 0 or start + size > end:
            yield Damage(at, f"cut: {info.name!r:.120} has {size} bytes, the tar ends after {end - start}")
            return
        at = start + -(-size // BLOCK) * BLOCK if info.isreg() or info.type in _EXTENDED else start
        if info.type in _EXTENDED:
            if size > LONGEST_NAME:
                yield Damage(start - BLOCK, f"an extended header of {size} bytes")
                return
            data = os.pread(descriptor, size, start)
            if info.type != tarfile.XGLTYPE:
                longer |= {"path": _text(data)} if info.type == tarfile.GNUTYPE_LONGNAME else _pax(data)
            continue
        name = longer.get("path", info.name)
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in longer)
        longer = {}
        if not info.isdir():
            yield Member(name, start, size if info.isreg() else 0, info.isreg() and not sparse)


_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)


def _text(data: bytes) -> str:
    return to_text(data.partition(b"\0")[0])


def _pax(data: bytes) -> dict[str, str]:
    """The records of a pax header, `LENGTH KEY=VALUE\\n` each, that matter here; what is no record ends the list."""
    found: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        name = key.decode("ascii", "replace")
        if name == "path" or name.startswith("GNU.sparse") or (name == "size" and value.isdigit()):
            found[name] = to_text(value)
        data = data[int(length) :]
    return found
