"""Copies of shards on a node's own disk, made ahead of the reading and checked against the receipts.

    FOLDER/ab/ab….tar, cd/cd….parquet   a copy, named by its sha256; there whole or not at all
    FOLDER/ab/.ab….tar.PID.tmp          being copied
    FOLDER/ab/ab….tar.lock              one process a node copies a file; the kernel ends locks with their process

Everybody on the node reads: a reader takes the copy if it is there and the shared file if not, and never waits. A copy
that is evicted stays readable for whoever has it open.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.data.layout import ShardPath
from semiocity.errors import UserError

BLOCK = 1 << 22
"""Bytes copied and hashed at a time."""
NAME = re.compile(r"[0-9a-f]{64}\.(tar|parquet)")


class Damaged(Exception):
    """What was read of the shared file is not what its receipt says."""


@dataclass(frozen=True)
class Stage:
    """Where copies lie. Only names, so that every process of a node agrees."""

    folder: Path

    @classmethod
    def at(cls, place: str) -> Stage:
        """`place` may name variables of the environment: "$TMPDIR/shards". UserError when one is not set."""
        expanded = os.path.expandvars(place)
        if "$" in expanded or not Path(expanded).is_absolute():
            raise UserError(
                f'data.stage_to = "{place}" is {expanded!r} on this node, no absolute path; name a folder of the '
                "node's own disk, such as $TMPDIR/shards, with variables that are set there"
            )
        return cls(Path(expanded))

    def place(self, source: Path, sha256: str) -> Path:
        """Where the copy of a file with this content lies, if there is one."""
        return self.folder / sha256[:2] / (sha256 + source.suffix)

    def find_shard(self, path: ShardPath, entry: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
        """The copies of a shard's tar and index; `entry` is what its column's manifest says of it."""
        return self.find(path.tar, entry["sha256"]), self.find(path.parquet, entry["parquet_sha256"])

    def find(self, source: Path, sha256: str) -> Path | None:
        """The copy of a file, marked as used just now; None when there is none."""
        copy = self.place(source, sha256)
        try:
            os.utime(copy)
        except OSError:
            return None
        return copy


@dataclass(frozen=True)
class Wanted:
    """A file to be copied, and what the receipt of its shard says of it."""

    source: Path
    bytes: int
    sha256: str


class Stager:
    """Copies what is wanted next, in the background; one a node does (the rank with local rank 0).

    Of what is wanted, in the order of its need, as much is kept as `limit_mb` (10⁶ bytes) has room for; other copies
    are evicted, least recently used first. When the disk is full or a file is not what its receipt says, a warning is
    given, once a kind, and reading goes on from the shared file.
    """

    def __init__(self, stage: Stage, limit_mb: int, warn: Callable[[str], None] | None = None) -> None:
        self.stage, self._limit = stage, limit_mb * 10**6
        self._warn = warn or _print_warning
        self._warned: set[str] = set()
        self._refused: set[str] = set()
        self._wanted: Sequence[Wanted] = ()
        self._changed = threading.Condition()
        self._closing, self._idle = False, True
        self._thread = threading.Thread(target=self._work, name="stager", daemon=True)
        try:
            stage.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(stage.folder)
        except OSError as error:
            self._tell("folder", f"{stage.folder}: {error.strerror}; reading from the shared files instead")
            return
        self._thread.start()

    def want(self, wanted: Sequence[Wanted]) -> None:
        """What is going to be read next, most urgent first, in place of what was wanted before."""
        with self._changed:
            self._wanted, self._idle = wanted, False
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Until everything that is wanted and has room has been tried. False when it takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle or not self._thread.is_alive(), timeout_s)

    def close(self) -> None:
        """Stop after the block that is being copied. Copies stay for the next attempt on this node."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._idle)
                if self._closing:
                    return
                wanted = self._wanted
            fitting = self._fitting(wanted)
            # Begun anew whenever something else is wanted: the most urgent comes first.
            finished = all(self._take(item, wanted, fitting) for item in fitting)
            with self._changed:
                if finished and wanted is self._wanted:
                    self._idle = True
                    self._changed.notify_all()

    def _fitting(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """As many of the first as the limit has room for."""
        fitting, total = [], 0
        for item in wanted:
            total += item.bytes
            if total > self._limit:
                break
            fitting.append(item)
        if len(fitting) < min(2, len(wanted)):
            self._tell("limit", f"data.stage_mb is {self._limit // 10**6}, less than one shard; nothing is copied")
        return fitting

    def _take(self, item: Wanted, wanted: Sequence[Wanted], fitting: Sequence[Wanted]) -> bool:
        """Have a copy of one file. False when to begin anew: something else is wanted, or it is time to go."""
        if self._closing or wanted is not self._wanted:
            return False
        copy = self.stage.place(item.source, item.sha256)
        if item.sha256 in self._refused or copy.exists():
            return True
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _lock(copy.with_name(f"{copy.name}.lock")) as held:
                if held and not copy.exists():
                    self._make_room(item, fitting)
                    copy_checked(item.source, copy, item.sha256, stop=lambda: self._closing)
        except InterruptedError:
            return False
        except Damaged as error:
            self._refused.add(item.sha256)
            self._tell(f"damaged {item.sha256}", f"{error}; it is not copied. `semiocity verify` tells more")
        except OSError as error:
            where = error.filename or self.stage.folder
            self._tell(f"{error.errno}", f"{where}: {error.strerror}; what is not copied is read from the shared files")
        return True

    def _make_room(self, item: Wanted, fitting: Sequence[Wanted]) -> None:
        """Evict what is not wanted, least recently used first, until the file fits into the limit."""
        keep = {self.stage.place(w.source, w.sha256) for w in fitting}
        with _lock(self.stage.folder / "evict.lock", wait=True):
            copies = sorted(_copies(self.stage.folder), key=lambda found: found[1])
            total = sum(size for _, _, size in copies) + item.bytes
            for copy, _, size in copies:
                if total <= self._limit:
                    return
                if copy not in keep:
                    copy.unlink(missing_ok=True)
                    copy.with_name(f"{copy.name}.lock").unlink(missing_ok=True)
                    total -= size

    def _tell(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(message)


def copy_checked(source: Path, target: Path, sha256: str, stop: Callable[[], bool] = lambda: False) -> None:
    """Copy a file under a temporary name, compare its sha256, rename. InterruptedError when `stop` says so.

    Not made durable: after a crash a node's own disk is of no use. Raises Damaged, and OSError when there is no room;
    nothing is left then.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    seen = hashlib.sha256()
    try:
        with source.open("rb", buffering=0) as reader, temporary.open("wb") as writer:
            # Asked for as a whole, so that a full disk is noticed before anything is copied.
            if size := os.fstat(reader.fileno()).st_size:
                os.posix_fallocate(writer.fileno(), 0, size)
            while block := reader.read(BLOCK):
                if stop():
                    raise InterruptedError
                seen.update(block)
                writer.write(block)
        if seen.hexdigest() != sha256:
            raise Damaged(f"{source}: its sha256 is not the one in its receipt")
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are gone were copying."""
    for path in folder.glob("??/.*.tmp"):
        pid = path.name.rsplit(".", 2)[-2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            path.unlink(missing_ok=True)


def files_of(columns: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]], shards: Sequence[int]) -> list[Wanted]:
    """What `Stager.want` takes: the files of `shards` in each column (its folder, its manifest's entries)."""
    found = []
    for shard in shards:
        for folder, entries in columns:
            path, entry = ShardPath(folder, shard), entries[shard]
            found.append(Wanted(path.parquet, entry["parquet_bytes"], entry["parquet_sha256"]))
            found.append(Wanted(path.tar, entry["bytes"], entry["sha256"]))
    return found


def _copies(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """(file, time of last use, bytes) of every copy."""
    for path in folder.glob("??/*"):
        with suppress(OSError):
            if NAME.fullmatch(path.name):  # whatever else lies in the user's folder is not ours to evict
                status = path.stat()
                yield path, status.st_mtime, status.st_size


@contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock of this node; yields False when another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _print_warning(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
