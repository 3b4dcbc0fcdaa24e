"""Every revision of every column on disk, what each is made from, and where rows are in them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.data import planned
from semiocity.data.keys import DIGITS
from semiocity.data.layout import complete
from semiocity.data.listing import id_hash
from semiocity.data.manifest import BASE, ShardPath, read_receipt
from semiocity.data.plan import Plan
from semiocity.data.shard import ShardReader
from semiocity.errors import UserError
from semiocity.files import read_json


@dataclass(frozen=True)
class Place:
    """Where a row is in one revision of base."""

    revision: str
    shard: int
    row: int
    live: bool
    """Whether it was not taken down."""


class Revisions:
    """Every revision of every column on disk, and what each is made from."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = Path(dataset)
        self.folders = {
            (folder.parent.name, folder.name): folder
            for folder in sorted((self.dataset / "columns").glob("*/*/"))
            if any(folder.glob("[0-9]*/"))
        }

    @property
    def bases(self) -> list[str]:
        """Revisions of base."""
        return [revision for column, revision in self.folders if column == BASE]

    def above(self, base: str, shard: int) -> list[ShardPath]:
        """This shard in every column that is made from a revision of base, directly or not; parents come first."""
        done, found = {(BASE, base)}, list[ShardPath]()
        pending = {place for place in self.folders if place[0] != BASE}
        while True:
            ready = []
            for place in sorted(pending):
                path = ShardPath(self.folders[place], shard)
                receipt = read_receipt(path)
                if receipt is not None and {(n, p["revision"]) for n, p in receipt["parents"].items()} <= done:
                    ready.append(place)
                    found.append(path)
            if not ready:
                return found
            done.update(ready)
            pending.difference_update(ready)

    def merged(self) -> Iterator[tuple[str, str]]:
        """Column and revision of all that have been merged, parents first."""
        parents = {
            place: set(read_json(folder / "manifest.json")["parents"].items())
            for place, folder in self.folders.items()
            if (folder / "manifest.json").exists()
        }
        while ready := [place for place, needed in parents.items() if not needed & parents.keys()]:
            for place in ready:
                del parents[place]
                yield place

    def stage(self, path: ShardPath) -> dict[str, Any]:
        """Name, version and arguments of what made a shard that is there."""
        receipt = read_receipt(path)
        assert receipt is not None
        stage: dict[str, Any] = receipt["stage"]
        return stage

    def find(self, revision: str, hashes: Collection[str]) -> dict[str, Place]:
        """sha256 of an id → its row in a revision of base, live or removed, for those that are packed there."""
        found: dict[str, Place] = {}
        for reader, place in self._beginning_with(revision, {hash[: DIGITS[0]] for hash in hashes}):
            digits = reader.keys[place.row].partition("-")[0]
            named = row_id_hash(reader, place.row) if place.live else ""
            for hash in hashes:
                if hash == named:
                    found[hash] = place  # also where one whose hash begins alike was taken down before
                elif not place.live and hash.startswith(digits):
                    found.setdefault(hash, place)
        return found

    def find_key(self, revision: str, key: str) -> Place | None:
        """The row with this key in a revision of base."""
        rows = self._beginning_with(revision, {key[: DIGITS[0]]})
        return next((place for reader, place in rows if reader.keys[place.row] == key), None)

    def _beginning_with(self, revision: str, digits: Collection[str]) -> Iterator[tuple[ShardReader, Place]]:
        """Rows that are packed and whose keys begin with one of `digits`; opens each shard that may have one once."""
        for shard, wanted in sorted(self._shards_of(revision, digits).items()):
            path = ShardPath(self.folders[BASE, revision], shard)
            if not complete(path):
                continue
            with ShardReader(path) as reader:
                for row, key in enumerate(reader.keys):
                    if key[: DIGITS[0]] in wanted:
                        dead = reader.tombstoned(row)
                        yield reader, Place(revision, shard, row, dead is None or dead[0] != "removed")

    def _shards_of(self, revision: str, digits: Collection[str]) -> dict[int, set[str]]:
        try:
            return planned.shards_of(Plan.open(self.dataset, revision), digits)
        except UserError:  # no plan: look into every shard
            receipts = self.folders[BASE, revision].glob("*/????????.json")
            return defaultdict(set, {int(path.stem): set(digits) for path in receipts})


def row_id_hash(reader: ShardReader, row: int) -> str:
    """The hash of the id of a live row of base."""
    return id_hash(json.loads(reader.read(row, "meta") or b"{}")["id"])
