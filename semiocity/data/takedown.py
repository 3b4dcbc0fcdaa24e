"""Taking rows down for good: out of every revision of every column and out of the plans, provably.

A row that was taken down stays a row, so that nothing else moves: its place holds a tombstone of kind `removed`, and
its key keeps the hash but loses the name. Only the shards that hold it, or name it (`named_elsewhere.py`), are written
anew; no others are read. Everything can be repeated: a removal that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from semiocity.config import canonical, fsync_folder, json_bytes, write_atomic
from semiocity.data import corrections, imported_rows, named_elsewhere, planned
from semiocity.data.keys import KEY
from semiocity.data.layout import GALLERY, GATHERED
from semiocity.data.lease import Owner, lease
from semiocity.data.listing import id_hash
from semiocity.data.manifest import BASE, ShardPath, merge, read_manifest, read_receipt, rebuild
from semiocity.data.plan import Plan, plan_folder
from semiocity.data.removed import Removed, read_removed, remember
from semiocity.data.revisions import Revisions, row_id_hash
from semiocity.data.shard import Head, ShardReader, ShardWriter
from semiocity.errors import UserError

TAKEN_DOWN = "taken down"


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
            id_sha256 = row_id_hash(reader, place.row)
        wanted.append(Removed(id_sha256, reason, date.today().isoformat(), _kept_by(revisions, id_sha256)))
    return wanted


def _kept_by(revisions: Revisions, id_sha256: str) -> tuple[str, ...]:
    """COLUMN/REVISION of `duplicates` in which the row is the one that its cluster keeps, and not alone in it."""
    found = set()
    for base in revisions.bases:
        for place in revisions.find(base, [id_sha256]).values():
            for path in revisions.above(base, place.shard):
                if revisions.stage(path)["name"] == "duplicates":
                    with ShardReader(path) as reader:
                        row = reader.scalars(place.row)
                    if row["keep"] and row["size"] > 1:
                        found.add(f"{path.folder.parent.name}/{path.folder.name}")
    return tuple(sorted(found))


def carry_out(dataset: Path, removed: Iterable[Removed], owner: Owner) -> list[ShardPath]:
    """Remove rows and remember that they were; returns the shards that were written anew.

    Raises UserError when somebody is at work on one of the shards; what was done stays done.
    """
    wanted = list(removed)
    hashes = {item.id_sha256 for item in wanted}
    remember(dataset, wanted)
    for copies in [Path(dataset) / GALLERY, *Path(dataset).glob(f"columns/*/*/{GATHERED}")]:
        shutil.rmtree(copies, ignore_errors=True)
    revisions, written = Revisions(dataset), list[ShardPath]()
    naming = list(named_elsewhere.naming(revisions, hashes))
    for revision in revisions.bases:
        rows: dict[int, set[int]] = defaultdict(set)
        for place in revisions.find(revision, hashes).values():
            rows[place.shard].add(place.row)
        for path in naming:
            if path in revisions.above(revision, path.shard):
                rows[path.shard] |= set()
        for shard in sorted(rows):
            path = ShardPath(revisions.folders[BASE, revision], shard)
            written += _remove(revisions, path, rows[shard], hashes, owner)
    for revision in [path.parent.name for path in sorted((Path(dataset) / "plans").glob("*/plan.json"))]:
        _scrub_plan(Path(dataset), revision, hashes)
    imported_rows.forget(Path(dataset), hashes)
    corrections.forget(Path(dataset), hashes)
    # Also when nothing was written: an earlier call may have been cut short before it came here.
    for column, revision in revisions.merged():
        merge(dataset, column, revision, aside=True)
    rebuild(Path(dataset))
    return written


def remains(dataset: Path, quick: bool = False) -> Iterator[tuple[ShardPath | Path, str]]:
    """Where something of rows that were taken down is still to be found, and what; nothing when all is well.

    Opens the indexes of the shards that held them, and of the plans the lines. Unless `quick` also what other rows of
    former versions of `duplicates` say of them, for which every index of that column is read.
    """
    hashes = {item.id_sha256 for item in read_removed(dataset)}
    if not hashes:
        return
    revisions = Revisions(dataset)
    for revision in revisions.bases:
        yield from _rows_left(revisions, revision, hashes)
    for path in [] if quick else named_elsewhere.naming(revisions, hashes):
        yield path, "names a row that was taken down"
    for file in sorted((Path(dataset) / "plans").glob("*/plan.json")):
        plan = Plan.open(dataset, file.parent.name)
        if planned.names(plan, hashes):
            yield file, "names a row that was taken down"
        for left in planned.unnamed(plan):
            yield left, "an older list of rows, which may name one that was taken down"
    for module in (imported_rows, corrections):
        for file in module.remembered(Path(dataset), hashes):
            yield file, "holds a row that was taken down"


def _rows_left(revisions: Revisions, revision: str, hashes: set[str]) -> Iterator[tuple[ShardPath, str]]:
    """Shards of a revision of base, and of what is made from it, in which a row is more than a tombstone."""
    shards: dict[int, dict[int, str]] = defaultdict(dict)
    for hash, place in revisions.find(revision, hashes).items():
        said = f"row {hash[:10]}… was taken down and is still there"
        if place.live:
            yield ShardPath(revisions.folders[BASE, revision], place.shard), said
        else:
            shards[place.shard][place.row] = said
    for shard, rows in sorted(shards.items()):
        keys = _keys(ShardPath(revisions.folders[BASE, revision], shard))
        for path in revisions.above(revision, shard):
            with ShardReader(path) as reader:
                for row, said in rows.items():
                    dead = reader.tombstoned(row)
                    if dead is None or dead[0] != "removed" or reader.keys[row] != keys[row]:
                        yield path, said


# ---------------------------------------------------------------- shards


def _remove(revisions: Revisions, base: ShardPath, rows: set[int], hashes: set[str], owner: Owner) -> list[ShardPath]:
    """Remove rows of a shard of base, and of the same shard of all columns above it; rows whose ids have these `hashes`
    are no longer named by others either."""
    with ShardReader(base) as reader:
        gone = {i for i in range(len(reader)) if (dead := reader.tombstoned(i)) and dead[0] == "removed"}
        keys = _buried(reader.keys, rows - gone)
    for folder in revisions.folders.values():
        # Shards in the making hold rows there; who makes them begins anew, since their parent is another.
        for journal in ShardPath(folder, base.shard).parent.glob(f".{base.stem}.journal.*"):
            journal.unlink(missing_ok=True)
    written = [base] if _rewrite(base, keys, gone | rows, owner) else []
    for path in revisions.above(base.folder.name, base.shard):
        if _rewrite(path, keys, gone | rows, owner, revisions, hashes):
            written.append(path)
    return written


def _rewrite(
    path: ShardPath,
    keys: list[str],
    gone: set[int],
    owner: Owner,
    revisions: Revisions | None = None,
    hashes: Collection[str] = (),
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
        naming = named_elsewhere.rows(reader, receipt["stage"], hashes) - gone
        if reader.keys == keys and buried >= gone and parents == receipt["parents"] and not naming:
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
                    payloads = reader.payloads(i)
                    payloads = named_elsewhere.without_names(payloads) if i in naming else payloads
                    writer.add(key, payloads, reader.scalars(i))
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
    for path in planned.unnamed(Plan.open(dataset, revision)):
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
