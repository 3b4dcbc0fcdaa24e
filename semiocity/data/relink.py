"""A shard that another revision of the column has already: linked, not made again."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from semiocity.data.manifest import ShardPath, read_receipt
from semiocity.data.shard import remove_leftovers
from semiocity.files import fsync_folder, write_json


def link_shard(source: ShardPath, target: ShardPath, changes: dict[str, Any]) -> None:
    """Publish `source` as `target` under its receipt with `changes`. The caller holds the target's lease.

    The files are hard links where the file system has them, else copies: shards are never changed in place, so that
    neither revision can harm the other.
    """
    receipt = read_receipt(source)
    assert receipt is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    attempt = uuid.uuid4().hex
    pairs = {
        target.parent / f".{target.stem}.tar.{attempt}.tmp": (source.tar, target.tar),
        target.parent / f".{target.stem}.parquet.{attempt}.tmp": (source.parquet, target.parquet),
    }
    try:
        for temporary, (old, _) in pairs.items():
            _link(old, temporary)
        if target.receipt.exists():  # an old receipt must not vouch for new bytes, not even for a moment
            target.receipt.unlink()
            fsync_folder(target.parent)
        for temporary, (_, new) in pairs.items():
            temporary.replace(new)
    finally:
        for temporary in pairs:
            temporary.unlink(missing_ok=True)
    fsync_folder(target.parent)
    write_json(target.receipt, {**receipt, **changes})


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(old, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
