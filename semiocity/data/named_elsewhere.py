"""Records of other rows that name a row which was taken down.

Version 1 of `duplicates` wrote the key of the row that a cluster keeps into the records of all its rows; since version
2 a record says nothing of other rows. What version 1 wrote is still there in its revisions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from semiocity.data.manifest import ShardPath
from semiocity.data.revisions import Revisions
from semiocity.data.shard import ShardReader
from semiocity.files import canonical

NAME = "representative"


def naming(revisions: Revisions, hashes: Collection[str]) -> Iterator[ShardPath]:
    """Shards in which a row names one whose id has one of these sha256. Reads every index of such revisions."""
    for folder in revisions.folders.values():
        receipts = sorted(folder.glob("*/????????.json"))
        if receipts and _names(revisions.stage(ShardPath(folder, int(receipts[0].stem)))):
            for path in (ShardPath(folder, int(receipt.stem)) for receipt in receipts):
                with ShardReader(path) as reader:
                    if rows(reader, revisions.stage(path), hashes):
                        yield path


def rows(reader: ShardReader, stage: Mapping[str, Any], hashes: Collection[str]) -> set[int]:
    """The rows of a shard that name one whose id has one of these sha256, of which a key begins with some digits."""
    if not _names(stage):
        return set()
    found = set()
    for row, (size, keep) in enumerate(zip(reader.column("size"), reader.column("keep"))):
        if size is not None and size > 1 and not keep and reader.tombstoned(row) is None:
            digits = json.loads(reader.read(row, "record") or b"{}").get(NAME, "-").partition("-")[0]
            if digits and any(hash.startswith(digits) for hash in hashes):
                found.add(row)
    return found


def without_names(payloads: Mapping[str, tuple[str, bytes]]) -> dict[str, tuple[str, bytes]]:
    """The payloads of a row whose record no longer says which row its cluster keeps."""
    extension, data = payloads["record"]
    record = {name: value for name, value in json.loads(data).items() if name != NAME}
    return {**payloads, "record": (extension, canonical(record).encode())}


def _names(stage: Mapping[str, Any]) -> bool:
    return stage["name"] == "duplicates" and stage["version"] == 1
