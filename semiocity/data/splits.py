"""Splits that the recipe decides: listed in text files, or cut by a hash. Login-node code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from semiocity.data.keys import fraction_of, printable, to_text
from semiocity.data.recipe import Recipe
from semiocity.data.sources.base import Entry, Rejection
from semiocity.errors import UserError


class Splitter:
    """Puts the rows of a recipe into their splits. Split files are read when it is made and held in memory."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises UserError when a split file is missing, empty, or names a row that another one names."""
        self._policy = recipe.splits
        self._named: dict[str, str] = {}
        """Id or file name → split."""
        self.files: dict[str, dict[str, Any]] = {}
        """Split → sha256 and lines of its file."""
        self.rows: dict[str, int] = dict.fromkeys(recipe.splits.files, 0)
        """Split → rows found so far that its file names."""
        for split, name in recipe.splits.files.items():
            path = recipe.folder / name
            where = f"{recipe.name}: splits.files.{split}: {path}"
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{where}: {error.strerror}; a text file with one id a line is expected") from None
            lines = [to_text(line.rstrip(b"\r")) for line in data.split(b"\n") if line.strip()]
            if not lines:
                raise UserError(f"{where}: no lines; one id a line is expected")
            for line in lines:
                if self._named.setdefault(line, split) != split:
                    raise UserError(f"{where}: {printable(line)} is in the split {self._named[line]} already")
            self.files[split] = {"sha256": hashlib.sha256(data).hexdigest(), "lines": len(set(lines))}

    def assign(self, entries: Iterable[Entry | Rejection]) -> Iterator[Entry | Rejection]:
        """The same entries with their splits. At the end raises UserError for a split file that no row fits."""
        for entry in entries:
            if isinstance(entry, Entry):
                split = self._split(entry)
                yield entry if split is None else entry._replace(split=split)
            else:
                yield entry
        for split, facts in self.files.items():
            if not self.rows[split]:
                example = next(line for line, named in self._named.items() if named == split)
                raise UserError(
                    f"splits.files.{split}: none of its {facts['lines']} lines is a row of the source, such as "
                    f"{printable(example)}; a row's id is its picture's path below source.root without extension"
                )

    def _split(self, entry: Entry) -> str | None:
        for name in (entry.id, entry.name):
            if name in self._named:
                self.rows[self._named[name]] += 1
                return self._named[name]
        if self._policy.fractions:
            place = fraction_of(entry.id, "split")
            for split, share in self._policy.fractions.items():
                if place < share:
                    return split
                place -= share
        return self._policy.rest
