"""The shards of a revision with corrections by hand: linked to those of the revision that was corrected, or written."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from semiocity.data import corrections
from semiocity.data.filter import LONGEST_TEXT
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import (
    FOLDER_SHARDS,
    ShardPath,
    column_folder,
    complete,
    corrected,
    lineage,
    merge,
    missing,
    read_column_manifest,
    read_receipt,
    shard_entries,
)
from semiocity.data.relink import link_shard
from semiocity.data.shard import Head, ShardReader, ShardWriter, sha256_file
from semiocity.errors import UserError

HAND = "hand"
"""What the scalar `captioner` says of a corrected row."""


def follow(dataset: Path, column: str, revision: str, owner: Owner) -> None:
    """Bring the corrected revisions of a column up to `revision`, which has been merged: its shards of rows that were
    added, and those that were lost and made again."""
    last = corrected(dataset, column, revision)
    if last is not None:
        catch_up(dataset, column, last, owner)


def catch_up(dataset: Path, column: str, last: str, owner: Owner) -> None:
    """Make the shards that corrected revisions lack, up to the revision `last`, from those that they are made of.

    Shards in which rows are to be tried again, and have been there, are made anew too. Raises UserError when texts are
    needed that were not kept, and when a shard to be made from is damaged as well: then its receipt goes, and the error
    names the job that makes it anew.
    """
    dataset = Path(dataset)
    names = lineage(dataset, column, last)[::-1]
    shards = int(read_column_manifest(dataset, column, names[0])["shards"])
    levels = []
    for of, name in pairwise(names):
        made = CorrectedRevision(dataset, column, name, read_column_manifest(dataset, column, name)["stage"], owner)
        levels.append((column_folder(dataset, column, of), made))
    lost = [
        shard
        for shard in sorted({shard for source, made in levels for shard in made.wanting(source, shards)})
        if not all(made.restore(ShardPath(source, shard)) for source, made in levels)
    ]
    if lost:
        from semiocity.data.repair import command_for

        raise UserError(
            f"{dataset}: {column}/{names[0]} has lost {len(lost)} shards as well (first: {lost[0]:08d}). Run "
            f"`{command_for(dataset, column, names[0])}`: only they are made, and the corrections come along"
        )
    for _, made in levels:
        merge(dataset, column, made.name, use=False)


class CorrectedRevision:
    """A revision of corrections, whose shards are made from those of the revision that was corrected."""

    def __init__(self, dataset: Path, column: str, name: str, stage: dict[str, Any], owner: Owner) -> None:
        self.dataset, self.column, self.name, self.stage, self.owner = dataset, column, name, stage, owner
        self.folder = column_folder(dataset, column, name)
        self.kept = corrections.read(dataset, column, name)
        merged = (self.folder / "manifest.json").exists()
        self.entries = shard_entries(dataset, column, name) if merged else None

    def path(self, shard: int) -> ShardPath:
        return ShardPath(self.folder, shard)

    def wanting(self, source: Path, shards: int) -> list[int]:
        """Shards to be made: those that are missing, and those whose source had rows tried again since."""
        found = missing(self.folder, shards)
        known = shard_entries(self.dataset, self.column, source.name)
        for made in self.entries.thousands(_has_retries) if self.entries else ():
            of = known.thousand(made.number)
            now = {} if of is None else dict(zip(of.shards, of.facts["tombstones"]["retry"]))
            retries = zip(made.shards, made.facts["tombstones"]["retry"])
            found += [shard for shard, count in retries if count > now.get(shard, count)]
        return found

    def restore(self, source: ShardPath) -> bool:
        """Make a shard anew unless it is whole and no older than its source; False when the source is not whole."""
        path, earlier = self.path(source.shard), self._was(source.shard) is not None
        # What was linked is lost together. A shard that is new was made just now: nothing to look for.
        if not _whole(source, every_byte=earlier):
            with lease(source.lease, self.owner) as held:
                if not held:
                    raise UserError(f"{source}: somebody works on it; try again later")
                if not _whole(source, every_byte=earlier):
                    source.receipt.unlink(missing_ok=True)
                    return False
        before, receipt = read_receipt(source), read_receipt(path)
        assert before is not None
        newer = receipt is not None and receipt["tombstones"]["retry"] > before["tombstones"]["retry"]
        if newer or not _whole(path, every_byte=earlier):
            self.make(source)
        return True

    def make(self, source: ShardPath) -> None:
        """Make one shard, replacing what is there. Raises UserError when somebody else is at it."""
        path = self.path(source.shard)
        with lease(path.lease, self.owner) as held:
            if not held:
                raise UserError(f"{path}: somebody works on it; try again later")
            with ShardReader(source) as reader:
                keys = [] if self.kept is None else [key for key in reader.keys if key in self.kept.rows]
            receipt = read_receipt(source)
            assert receipt is not None
            if keys and self.kept is not None:
                _write(path, source, self.name, self.stage, {key: self.kept.rows[key].text for key in keys})
            elif self.kept is None and self._was(source.shard) not in (None, receipt["sha256"]):
                raise UserError(
                    f"{path}: has corrections whose texts were not kept, as they are now. To go back to what was "
                    f"corrected: `semiocity columns {self.dataset} --use {self.column}={source.folder.name}`"
                )
            else:
                link_shard(source, path, {"revision": self.name, "stage": self.stage})

    def _was(self, shard: int) -> str | None:
        """sha256 of the tar when the column was merged; None for a shard that it did not have."""
        thousand = None if self.entries is None else self.entries.thousand(shard // FOLDER_SHARDS)
        place = None if thousand is None else thousand.places.get(shard)
        return None if thousand is None or place is None else str(thousand.entry(place)["sha256"])


def _has_retries(line: dict[str, Any]) -> bool:
    """Of a thousand's line in a manifest."""
    return bool(line["tombstones"].get("retry"))


def _whole(path: ShardPath, every_byte: bool) -> bool:
    """Whether a shard is there, and has the bytes that its receipt names."""
    if not complete(path):
        return False
    receipt = read_receipt(path)
    assert receipt is not None
    sums = {path.tar: receipt["sha256"], path.parquet: receipt["parquet_sha256"]}
    return not every_byte or all(sha256_file(file) == sha256 for file, sha256 in sums.items())


def _write(path: ShardPath, source: ShardPath, revision: str, stage: dict[str, Any], edits: dict[str, str]) -> None:
    """The source's shard with these texts in place of its own; a row that had failed has one now."""
    receipt = read_receipt(source)
    assert receipt is not None
    head = Head(
        **{name: receipt[name] for name in ("column", "shard", "parents", "model", "execution", "fields", "scalars")},
        revision=revision,
        stage=stage,
    )
    with ShardReader(source) as reader, ShardWriter(path, head) as writer:
        for row, key in enumerate(reader.keys):
            scalars = reader.scalars(row)
            dead = reader.tombstoned(row)
            if key in edits:
                text = edits[key]
                mine = {"text": text[:LONGEST_TEXT], "short": text.splitlines()[0], "captioner": HAND}
                scalars |= {name: value for name, value in mine.items() if name in scalars}
                writer.add(key, {"text": ("txt", edits[key].encode())}, scalars)
            elif dead is not None:
                writer.tombstone(key, *dead, scalars)
            else:
                writer.add(key, reader.payloads(row), scalars)
        writer.publish()
