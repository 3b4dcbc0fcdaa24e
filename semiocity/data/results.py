"""What becomes of a row when a shard is made. Login-node code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from semiocity.data.shard import ShardWriter


class Made(NamedTuple):
    """A row of the new column: field → (extension, payload), and the scalars that go into the index."""

    fields: dict[str, tuple[str, bytes]]
    scalars: dict[str, Any]


class Tombstone(NamedTuple):
    """In place of a row that failed."""

    kind: Literal["permanent", "retry", "removed"]
    """`permanent`: the input is bad. `retry`: it may succeed another time (memory, I/O). `removed`: taken down."""
    reason: str
    """The same input gives the same words: no addresses, times or hosts."""


class Refused(NamedTuple):
    """A source's file that is not packed; it appears in the receipt only."""

    name: str
    reason: str
    detail: str


def write(writer: ShardWriter, key: str, result: Made | Tombstone | Refused) -> bool:
    """Write one row; whether it was made."""
    match result:
        case Made(fields, scalars):
            writer.add(key, fields, scalars)
        case Tombstone(kind, reason):
            writer.tombstone(key, kind, reason)
        case Refused(name, reason, detail):
            writer.reject(name, reason, detail)
    return isinstance(result, Made)
