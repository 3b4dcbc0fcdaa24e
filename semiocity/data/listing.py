"""A source's entries spread over files by key, sorted, given their keys, and compared with an earlier plan.

Rows are sorted through files of 1/256 each, so that memory holds one of them at a time. Login-node code.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from semiocity.config import canonical
from semiocity.data.keys import DIGITS, key_of, printable, to_bytes
from semiocity.data.recipe import Recipe
from semiocity.data.sources.base import Entry, Rejection
from semiocity.errors import UserError


class PlanRow(NamedTuple):
    """One row of the base column before it is packed."""

    key: str
    entry: Entry | None
    """None for a row that was taken down (`removed.py`): nothing of it is kept but its key."""


class Listing:
    """What a source has now."""

    def __init__(self, recipe: Recipe, scratch: Path, removed: frozenset[str] = frozenset()) -> None:
        """`scratch` is an empty folder of our own; `removed` are the id hashes of rows that were taken down."""
        self._promised = [name for name in recipe.fields or () if name != "image"]
        self._scratch = scratch
        self._removed = removed
        self.seen = 0
        """Picture files, or rows of files that hold many."""
        self.fields: set[str] = set()
        self.changed = 0
        """After `rows`: rows of the earlier plan whose files or settings differ now."""
        self.gone = 0
        """After `rows`: rows of the earlier plan that the source no longer has."""
        self.first_changed = self.first_gone = ""
        """The file of the first row that differs, the key of the first that is gone."""
        self.absent_removed = 0
        """After `rows`: rows of the earlier plan that were taken down and whose files are gone too."""

    def fill(self, entries: Iterable[Entry | Rejection]) -> None:
        """Read the source to its end. Call once."""
        with ExitStack() as stack:
            buckets: dict[str, IO[str]] = {}
            rejects = stack.enter_context(self._open("listed.jsonl", "x"))
            for entry in entries:
                self.seen += 1
                rejection = entry if isinstance(entry, Rejection) else self._refused(entry)
                if rejection is not None:
                    rejects.write(canonical(rejection._asdict()) + "\n")
                    continue
                assert isinstance(entry, Entry)
                self.fields.update(entry.sizes)
                key = key_of(entry.id)
                if key[:2] not in buckets:
                    buckets[key[:2]] = stack.enter_context(self._open(f"{key[:2]}.bucket", "x"))
                buckets[key[:2]].write(canonical([key, *entry]) + "\n")

    def rows(self, earlier: Iterable[PlanRow] = ()) -> Iterator[PlanRow]:
        """Rows in ascending order of keys; those with an id seen before are rejected.

        With an `earlier` plan only rows that it lacks are given, with keys that it has not given out, and `changed`,
        `gone` and `absent_removed` say how the others compare. May be called again.
        """
        self.changed = self.gone = self.absent_removed = 0
        self.first_changed = self.first_gone = ""
        known = self._spread(earlier)
        with self._open("resolved.jsonl", "w") as self._resolved:
            names = {path.stem for path in self._scratch.glob("*.bucket")} | known
            for name in sorted(names):
                old = self._bucket(f"{name}.old") if name in known else []
                found = [(key, Entry(*entry)) for key, *entry in self._bucket(f"{name}.bucket")]
                yield from self._resolve(found, old)

    def rejected(self) -> Iterator[str]:
        """The rejections, a JSON line each; complete when `rows` has been read to its end."""
        for name in ("listed.jsonl", "resolved.jsonl"):
            with self._open(name, "r") as lines:
                yield from lines

    def counts(self) -> dict[str, int]:
        """Reason → files rejected."""
        return dict(sorted(Counter(json.loads(line)["reason"] for line in self.rejected()).items()))

    def _refused(self, entry: Entry) -> Rejection | None:
        absent = [name for name in self._promised if entry.sizes and name not in entry.sizes]
        return Rejection(entry.name, f"{absent[0]}_missing", "promised by the recipe") if absent else None

    def _spread(self, earlier: Iterable[PlanRow]) -> set[str]:
        """Write the earlier plan's rows as key, id hash and digest, by bucket; returns the buckets."""
        with ExitStack() as stack:
            files: dict[str, IO[str]] = {}
            for key, entry in earlier:
                if key[:2] not in files:
                    files[key[:2]] = stack.enter_context(self._open(f"{key[:2]}.old", "w"))
                line = [key, key.partition("-")[0], None] if entry is None else [key, id_hash(entry.id), digest(entry)]
                files[key[:2]].write(canonical(line) + "\n")
            return set(files)

    def _bucket(self, name: str) -> list[list[Any]]:
        try:
            with self._open(name, "r") as lines:
                return [json.loads(line) for line in lines]
        except FileNotFoundError:
            return []

    def _resolve(self, found: list[tuple[str, Entry]], old: list[list[Any]]) -> list[PlanRow]:
        """Give out the keys of one bucket: first come first served in sorted order, by id and then by file."""
        taken: dict[str, str] = {key: hash for key, hash, _ in old}
        digests = {hash: digest for _, hash, digest in old if digest is not None}
        # A row that was taken down is known by as much of its id's hash as its key has.
        buried = {hash for _, hash, digest in old if digest is None}
        seen: dict[str, str] = {}
        made: list[PlanRow] = []
        for key, entry in sorted(found, key=lambda pair: _precedence(pair[0], pair[1], digests)):
            hash = id_hash(entry.id)
            if hash in seen:
                self._reject(Rejection(entry.name, "duplicate_id", f"{printable(seen[hash])} is packed"))
                continue
            seen[hash] = entry.name
            if hash in self._removed:
                grave = next((part for part in (hash[:digits] for digits in DIGITS) if part in buried), None)
                if grave is None:
                    self._reject(Rejection(f"{hash[: DIGITS[0]]}-removed", "removed", "taken down"))
                else:
                    buried.discard(grave)
            elif hash in digests:
                if digest(entry) != digests[hash]:
                    self.changed += 1
                    self.first_changed = self.first_changed or printable(entry.name)
            else:
                made.append(PlanRow(self._free(entry, hash, key, taken), entry))
        gone = [key for key, hash, digest in old if digest is not None and hash not in seen]
        self.gone += len(gone)
        self.first_gone = self.first_gone or (gone[0] if gone else "")
        self.absent_removed += len(buried)
        return sorted(made, key=lambda row: row.key)

    def _free(self, entry: Entry, hash: str, key: str, taken: dict[str, str]) -> str:
        for digits in DIGITS:
            wanted = key_of(entry.id, digits)
            if wanted not in taken:
                taken[wanted] = hash
                return wanted
        raise UserError(f"{printable(entry.name)}: no free key near {key}; rename the file")

    def _reject(self, rejection: Rejection) -> None:
        self._resolved.write(canonical(rejection._asdict()) + "\n")

    def _open(self, name: str, mode: str) -> IO[str]:
        return (self._scratch / name).open(mode, encoding="ascii")


def _precedence(key: str, entry: Entry, packed: dict[str, str]) -> tuple[str, str, bool, str]:
    """Of several files with one id, the one that an earlier plan holds comes first."""
    return key, entry.id, bool(packed) and packed.get(id_hash(entry.id)) != digest(entry), entry.name


def id_hash(id: str) -> str:
    """sha256 of a row's id; keys begin with as many of its digits as they need."""
    return hashlib.sha256(to_bytes(id)).hexdigest()


def digest(entry: Entry) -> str:
    """Of everything that the plan says of a row."""
    return hashlib.sha256(canonical(list(entry)).encode()).hexdigest()[:24]
