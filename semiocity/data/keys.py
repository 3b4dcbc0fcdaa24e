"""Keys: what a row is called inside the shards, made from what its source calls it.

Names on disk are bytes in any encoding. Inside the program they are text that gives those bytes back
(UTF-8 with surrogate escapes, whatever the locale says), and JSON written as ASCII carries that text unharmed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import NewType

SLUG_LENGTH = 48
DIGITS = (10, 20, 30)
"""Hex digits of the hash in a key; more only when two ids would get one key."""

KEY = re.compile(r"[0-9a-f]{10,30}-[a-z0-9_-]{1,48}")

Key = NewType("Key", str)


def to_text(name: bytes) -> str:
    """A name on disk as text; `to_bytes` gives back the same bytes."""
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """The bytes on disk of a name made by `to_text`."""
    return name.encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """A name for messages: bytes that are no UTF-8, newlines and other control characters are escaped."""
    text = to_bytes(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def storable(text: str) -> str:
    """Text that UTF-8 can hold, as the index needs it: a byte that was no UTF-8, or half of a pair, is U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def slug(name: str) -> str:
    """The readable part of a key: [a-z0-9_-], 1 to 48 characters. No dot: readers of tar samples split at the first."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:SLUG_LENGTH].strip("-") or "unnamed"


def key_of(id: str, digits: int = DIGITS[0]) -> Key:
    """The key of a row: `digits` hex digits of the sha256 of its id, a dash, and a slug of the id's last part."""
    return Key(f"{hashlib.sha256(to_bytes(id)).hexdigest()[:digits]}-{slug(id.rpartition('/')[2])}")


def fraction_of(id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the id and the purpose only; splits are cut by it."""
    return int.from_bytes(hashlib.sha256(purpose.encode() + b"\0" + to_bytes(id)).digest()[:7], "big") / 2.0**56
