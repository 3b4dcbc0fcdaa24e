"""Pack one shard again and again, killing the process (SIGKILL) at its 1st, 2nd, 3rd … step until it gets through.

A step is a write into the shard, or one of the audit events open, rename, remove, mkdir.
After each kill: a receipt never vouches for anything but whole files; and packing again, by a new process, gives
the bytes of an undisturbed packing and leaves nothing else behind.

    python kill_points.py DATASET REVISION SHARD replace|fresh
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semiocity.data import shard as shard_module
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath
from semiocity.data.pack import pack_shard, pack_shards
from semiocity.data.plan import Plan

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "packing failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die_at(step: int) -> None:
    """From now on count steps, and kill this process at the given one."""
    left = step

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    write = shard_module.ShardWriter._write

    def counted(self: shard_module.ShardWriter, data: bytes) -> None:
        count()
        write(self, data)
        self._file.flush()

    shard_module.ShardWriter._write = counted  # type: ignore[method-assign]
    sys.addaudithook(lambda event, _: count() if event in EVENTS else None)


def files(path: ShardPath) -> dict[str, str]:
    """Everything in the shard's folder, name → sha256."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.parent.glob("*"))}


def older_shard(path: ShardPath, tar: bytes, parquet: bytes, receipt: dict[str, Any]) -> None:
    """Put a shard of other bytes, with a receipt that fits them, where the new one goes."""
    tar, parquet = tar + bytes(512), parquet + b"older"
    sums = {"sha256": hashlib.sha256(tar).hexdigest(), "parquet_sha256": hashlib.sha256(parquet).hexdigest()}
    path.tar.write_bytes(tar)
    path.parquet.write_bytes(parquet)
    path.receipt.write_text(json.dumps({**receipt, **sums}))


def main(dataset: str, revision: str, shard: str, mode: str) -> None:
    plan = Plan.open(Path(dataset), revision)
    path = plan.path(int(shard))

    def again() -> None:
        if mode == "replace":
            pack_shard(plan, path.shard, path)
        else:
            pack_shards(plan, [path.shard], Owner.here())

    in_child(again)
    undisturbed = files(path)
    whole = path.tar.read_bytes(), path.parquet.read_bytes(), json.loads(path.receipt.read_text())
    kills = 0
    while True:
        if mode == "replace":
            older_shard(path, *whole)
        else:
            for name in (path.tar, path.parquet, path.receipt):
                name.unlink()

        def doomed(step: int = kills + 1) -> None:
            die_at(step)
            again()

        if in_child(doomed) == 0:
            break
        kills += 1
        found = files(path)
        if path.receipt.name in found:
            receipt = json.loads(path.receipt.read_text())
            promised = (receipt["sha256"], receipt["parquet_sha256"])
            assert (found.get(path.tar.name), found.get(path.parquet.name)) == promised, f"lying receipt, step {kills}"
        in_child(again)
        # The lease of a dead process goes with the next attempt only when that had work to do.
        now = {name: digest for name, digest in files(path).items() if name != path.lease.name}
        assert now == undisturbed, f"step {kills}: {sorted(set(now) ^ set(undisturbed)) or 'other bytes'}"
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(*sys.argv[1:])
