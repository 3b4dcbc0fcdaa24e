"""Taking rows down for good: out of every revision of every column and out of the plans, provably.

A row that was taken down stays a row, so that nothing else moves: its place holds a tombstone of kind `removed`, and
its key keeps the hash but loses the name. Only the shards that hold it are written anew; the rest of the dataset is
not read. Everything can be repeated: a removal that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from semiocity.config import canonical, fsync_folder, json_bytes, read_json, write_atomic
from semiocity.data import corrections, imported_rows
from semiocity.data.keys import KEY
from semiocity.data.layout import GALLERY, GATHERED
from semiocity.data.lease import Owner, lease
from semiocity.data.listing import id_hash
from semiocity.data.manifest import BASE, ShardPath, merge, missing, read_manifest, read_receipt, rebuild
from semiocity.data.plan import Plan, plan_folder
from semiocity.data.removed import Removed, read_removed, remember
from semiocity.data.shard import Head, ShardReader, ShardWriter
from semiocity.errors import UserError

TAKEN_DOWN = "taken down"


@dataclass(frozen=True)
class Place:
    """A row that is to be, or was, removed, in one revision of base."""

    revision: str
    shard: int
    row: int
    live: bool
    """Whether its payload is still there."""


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

    def find(self, revision: str, id_sha256: str) -> Place | None:
        """The row with this id in a revision of base, live or removed; None where it never was or is not packed yet."""

        def is_it(reader: ShardReader, row: int, live: bool) -> bool:
            digits = reader.keys[row].partition("-")[0]
            return id_sha256.startswith(digits) and (not live or row_id_hash(reader, row) == id_sha256)

        return self._search(revision, id_sha256[:10], is_it)

    def find_key(self, revision: str, key: str) -> Place | None:
        """The row with this key in a revision of base."""
        return self._search(revision, key[:10], lambda reader, row, live: reader.keys[row] == key)

    def _search(self, revision: str, prefix: str, is_it: Callable[[ShardReader, int, bool], bool]) -> Place | None:
        """The first row whose key begins with `prefix` and that is the one, called with reader, row and live."""
        folder = self.folders[BASE, revision]
        for first, last in self._parts(revision):
            absent = set(missing(folder, last))
            shards = [shard for shard in range(first, last) if shard not in absent]
            low, high = 0, len(shards)
            while low < high:  # the first shard that begins above the prefix
                middle = (low + high) // 2
                keys = _keys(ShardPath(folder, shards[middle]))
                low, high = (middle + 1, high) if not keys or keys[0][:10] <= prefix else (low, middle)
            # Rows of one prefix may lie on both sides of a border.
            for shard in shards[max(0, low - 2) : low]:
                with ShardReader(ShardPath(folder, shard)) as reader:
                    for row, key in enumerate(reader.keys):
                        if key.startswith(prefix):
                            dead = reader.tombstoned(row)
                            live = dead is None or dead[0] != "removed"
                            if is_it(reader, row, live):
                                return Place(revision, shard, row, live)
        return None

    def _parts(self, revision: str) -> list[tuple[int, int]]:
        """First and one past the last shard of each part of the plan; keys ascend inside of a part."""
        try:
            sizes = [len(part["offsets"]) for part in Plan.open(self.dataset, revision).content["parts"]]
        except UserError:  # no plan: look into every shard
            numbers = [int(path.stem) for path in self.folders[BASE, revision].glob("*/????????.json")]
            sizes = [1] * (max(numbers, default=-1) + 1)
        ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        return list(pairwise(ends))


def request(dataset: Path, keys: Sequence[str], reason: str) -> list[Removed]:
    """What removing the rows with these keys means; remembers nothing yet.

    Raises UserError for a key that the dataset does not have, or that was taken down already.
    """
    if not reason.strip():
        raise UserError('a reason is kept with every removal: --reason "…" (no names)')
    revisions, wanted = Revisions(dataset), []
    base = read_manifest(dataset)["columns"][BASE]["revision"]
    for key in keys:
        place = revisions.find_key(base, key) if KEY.fullmatch(key) else None
        if place is None:
            raise UserError(f"{dataset}: no row has the key {key}; `semiocity search` and `show` find keys")
        with ShardReader(ShardPath(revisions.folders[BASE, base], place.shard)) as reader:
            if not place.live:
                raise UserError(f"{dataset}: {key} was taken down already")
            wanted.append(Removed(row_id_hash(reader, place.row), reason, date.today().isoformat()))
    return wanted


def row_id_hash(reader: ShardReader, row: int) -> str:
    """The hash of the id of a live row of base."""
    return id_hash(json.loads(reader.read(row, "meta") or b"{}")["id"])


def carry_out(dataset: Path, removed: Iterable[Removed], owner: Owner) -> list[ShardPath]:
    """Remove rows and remember that they were; returns the shards that were written anew.

    Raises UserError when somebody is at work on one of the shards; what was done stays done.
    """
    wanted = list(removed)
    remember(dataset, wanted)
    for copies in [Path(dataset) / GALLERY, *Path(dataset).glob(f"columns/*/*/{GATHERED}")]:
        shutil.rmtree(copies, ignore_errors=True)
    revisions, written = Revisions(dataset), list[ShardPath]()
    for revision in revisions.bases:
        places = [p for item in wanted if (p := revisions.find(revision, item.id_sha256)) is not None]
        for shard in sorted({place.shard for place in places}):
            path = ShardPath(revisions.folders[BASE, revision], shard)
            rows = {place.row for place in places if place.shard == shard}
            written += _remove(revisions, path, rows, owner)
    for revision in [path.parent.name for path in sorted((Path(dataset) / "plans").glob("*/plan.json"))]:
        _scrub_plan(Path(dataset), revision, {item.id_sha256 for item in wanted})
    imported_rows.forget(Path(dataset), {item.id_sha256 for item in wanted})
    corrections.forget(Path(dataset), {item.id_sha256 for item in wanted})
    # Also when nothing was written: an earlier call may have been cut short before it came here.
    for column, revision in revisions.merged():
        merge(dataset, column, revision, aside=True)
    rebuild(Path(dataset))
    return written


def remains(dataset: Path) -> Iterator[tuple[ShardPath | Path, str]]:
    """Where something of rows that were taken down is still to be found, and what; nothing when all is well."""
    removed = read_removed(dataset)
    revisions = Revisions(dataset) if removed else None
    for item in removed:
        assert revisions is not None
        for revision in revisions.bases:
            place = revisions.find(revision, item.id_sha256)
            if place is None:
                continue
            base = ShardPath(revisions.folders[BASE, revision], place.shard)
            if place.live:
                yield base, f"row {item.id_sha256[:10]}… was taken down and is still there"
                continue
            key = _keys(base)[place.row]
            for path in revisions.above(revision, place.shard):
                with ShardReader(path) as reader:
                    dead = reader.tombstoned(place.row)
                    if dead is None or dead[0] != "removed" or reader.keys[place.row] != key:
                        yield path, f"row {item.id_sha256[:10]}… was taken down and is still there"
    hashes = {item.id_sha256 for item in removed}
    for file in sorted((Path(dataset) / "plans").glob("*/plan.json")) if removed else ():
        if any(id_hash(entry.id) in hashes for _, entry in Plan.open(dataset, file.parent.name).all_rows() if entry):
            yield file, "names a row that was taken down"
    for module in (imported_rows, corrections) if removed else ():
        for file in module.remembered(Path(dataset), hashes):
            yield file, "holds a row that was taken down"


# ---------------------------------------------------------------- shards


def _remove(revisions: Revisions, base: ShardPath, rows: set[int], owner: Owner) -> list[ShardPath]:
    """Remove rows of a shard of base, and of the same shard of all columns above it."""
    with ShardReader(base) as reader:
        gone = {i for i in range(len(reader)) if (dead := reader.tombstoned(i)) and dead[0] == "removed"}
        keys = _buried(reader.keys, rows - gone)
    for folder in revisions.folders.values():
        # Shards in the making hold rows there; who makes them begins anew, since their parent is another.
        for journal in ShardPath(folder, base.shard).parent.glob(f".{base.stem}.journal.*"):
            journal.unlink(missing_ok=True)
    written = [base] if _rewrite(base, keys, gone | rows, owner) else []
    for path in revisions.above(base.folder.name, base.shard):
        if _rewrite(path, keys, gone | rows, owner, revisions):
            written.append(path)
    return written


def _rewrite(
    path: ShardPath, keys: list[str], gone: set[int], owner: Owner, revisions: Revisions | None = None
) -> bool:
    """Write a shard with these keys and with tombstones for rows `gone`; False when it is like that already."""
    receipt = read_receipt(path)
    assert receipt is not None
    parents = receipt["parents"]
    if revisions is not None:
        now = {n: read_receipt(ShardPath(revisions.folders[n, p["revision"]], path.shard)) for n, p in parents.items()}
        parents = {n: {"revision": r["revision"], "sha256": r["sha256"]} for n, r in now.items() if r is not None}
    with lease(path.lease, owner) as held, ShardReader(path) as reader:
        if not held:
            raise UserError(f"{path}: somebody works on it; remove again when that job has ended (`semiocity status`)")
        dead = [reader.tombstoned(i) for i in range(len(reader))]
        buried = {i for i, found in enumerate(dead) if found and found[0] == "removed"}
        if reader.keys == keys and buried >= gone and parents == receipt["parents"]:
            return False
        head = Head(
            **{name: receipt[name] for name in ("column", "revision", "shard", "stage", "model", "execution")},
            parents=parents,
            fields=receipt["fields"],
            scalars=receipt["scalars"],
        )
        with ShardWriter(path, head) as writer:
            for item in receipt["rejected"]:
                writer.reject(**item)
            for i, key in enumerate(keys):
                if i in gone:
                    writer.tombstone(key, "removed", TAKEN_DOWN)
                elif (found := dead[i]) is not None:
                    writer.tombstone(key, *found, reader.scalars(i))
                else:
                    writer.add(key, reader.payloads(i), reader.scalars(i))
            writer.publish()
    return True


def _buried(keys: Sequence[str], rows: set[int]) -> list[str]:
    """The keys, those of `rows` without the row's name, in the same order."""
    made = list(keys)
    for row in sorted(rows):
        before = made[row - 1] if row else ""
        after = made[row + 1] if row + 1 < len(made) else "~"
        digits, _, name = made[row].partition("-")
        # Rows whose hashes begin alike are ordered by name: as much of it is kept as the order needs.
        names = ["removed", *(name[:length] for length in range(1, len(name) + 1))]
        made[row] = next(key for n in names if before < (key := f"{digits}-{n}") < after)
    return made


def _keys(path: ShardPath) -> list[str]:
    keys: list[str] = pq.read_table(path.parquet, columns=["key"]).column("key").to_pylist()
    return keys


# ---------------------------------------------------------------- plans


def _scrub_plan(dataset: Path, revision: str, hashes: set[str]) -> None:
    """Take rows out of a plan; their places stay."""
    folder, content = plan_folder(dataset, revision), Plan.open(dataset, revision).content
    parts = [_scrubbed(folder, part, hashes) for part in content["parts"]]
    if parts != content["parts"]:
        write_atomic(folder / "plan.json", json_bytes({**content, "parts": parts}))
    named = {part["file"] for part in parts} | {"rejected.jsonl"}
    for path in folder.glob("*.jsonl"):
        if path.name not in named:
            path.unlink()


def _scrubbed(folder: Path, part: dict[str, Any], hashes: set[str]) -> dict[str, Any]:
    """The part without these rows, in a file of its own; the part itself where it has none of them."""
    offsets, digest, hit = [0], hashlib.sha256(), False
    made = folder / ".scrubbed.tmp"
    with (folder / part["file"]).open("rb") as lines, made.open("wb") as file:
        for line in lines:
            rows = json.loads(line)
            gone = {i for i, row in enumerate(rows) if len(row) > 1 and id_hash(row[1]) in hashes}
            if gone:
                hit = True
                keys = _buried([row[0] for row in rows], gone)
                rows = [[keys[i]] if i in gone else row for i, row in enumerate(rows)]
                line = (canonical(rows) + "\n").encode()
            digest.update(line)
            offsets.append(offsets[-1] + file.write(line))
        file.flush()
        os.fsync(file.fileno())
    if not hit:
        made.unlink()
        return part
    name = f"part-{digest.hexdigest()[:10]}.jsonl"
    made.rename(folder / name)
    fsync_folder(folder)
    return {**part, "file": name, "offsets": offsets[:-1]}
