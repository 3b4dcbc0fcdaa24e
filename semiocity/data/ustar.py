"""Headers of plain USTAR members, and the file that they are written to."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

BLOCK = 512
RECORD = 10240
"""A tar is padded to whole records, as GNU tar does."""
LARGEST = 8**11 - 1
"""Bytes: the largest size that a USTAR header can name."""

_MODE = b"0000644\0" + b"0000000\0" * 2
_TAIL = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
_TIME = b"%011o\0" % 0
_CONSTANT_SUM = sum(_MODE) + sum(_TIME) + sum(b" " * 8) + sum(_TAIL)


def ustar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: USTAR, mode 0644, uid, gid and time 0, no user names."""
    raw = name.encode("ascii")
    if len(raw) > 100 or not 0 <= size <= LARGEST:
        raise ValueError(f"tar member {name!r}, {size} bytes: at most 100 characters and {LARGEST} bytes")
    octal = b"%011o\0" % size
    total = _CONSTANT_SUM + sum(raw) + sum(octal)
    return b"".join((raw.ljust(100, b"\0"), _MODE, octal, _TIME, b"%06o\0 " % total, _TAIL))


class HashedFile:
    """A new file, hashed while it is written. Large pieces are not copied: what is added must not change any more.

    Hashing takes as long as all the rest together, so a thread does it; another brings to disk what is written, so that
    the fsync at the end has little left to wait for. Raises FileExistsError, and OSError from any call once writing or
    bringing to disk has failed.
    """

    CHUNK = 1 << 20
    """Bytes that are written and hashed together; about what a processor's cache keeps from the one to the other."""
    SMALL = 4096
    """Bytes: neighbours that are smaller are joined, so that a chunk has no more pieces than `writev` takes (1,024)."""
    WAITING = 4
    """Chunks that may wait to be hashed; then the writer waits."""
    SYNC = 16 << 20
    """Bytes between two syncs."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._hash = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="fdatasync")
        self._hashing: deque[Future[None]] = deque()
        self._syncing: Future[None] | None = None
        self._parts: list[bytes] = []
        self._held = 0
        self._unsynced = 0
        self.size = 0
        """Bytes that were added."""

    def add(self, *parts: bytes) -> None:
        """Append; written at once only when enough has come together."""
        self._parts += parts
        size = sum(map(len, parts))
        self._held += size
        self.size += size
        if self._held >= self.CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what was added, and have it hashed."""
        if not self._held:
            return
        parts = [
            part
            for small, group in groupby(self._parts, lambda part: len(part) < self.SMALL)
            for part in ([b"".join(group)] if small else group)
        ]
        while len(self._hashing) >= self.WAITING:
            self._hashing.popleft().result()
        self._hashing.append(self._hasher.submit(self._digest, parts))
        _write_all(self._descriptor, parts, self._held)
        self._unsynced += self._held
        self._parts, self._held = [], 0
        if self._unsynced >= self.SYNC and (self._syncing is None or self._syncing.done()):
            self._synced()
            self._syncing = self._syncer.submit(os.fdatasync, self._descriptor)
            self._unsynced = 0

    def finish(self) -> Future[str]:
        """Nothing can be added any more. The future gives the file's sha256 once all of it is on disk."""
        self.flush()
        return self._syncer.submit(self._finish)

    def close(self) -> None:
        """Let go of the file, whether it is finished or not."""
        self._hasher.shutdown()
        self._syncer.shutdown()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _finish(self) -> str:
        self._synced()
        os.fsync(self._descriptor)
        while self._hashing:
            self._hashing.popleft().result()
        return self._hash.hexdigest()

    def _digest(self, parts: list[bytes]) -> None:
        for part in parts:
            self._hash.update(part)

    def _synced(self) -> None:
        # A file system tells only once that it could not keep what was written: this may be the only one to hear it.
        if self._syncing is not None:
            self._syncing.result()


def _write_all(descriptor: int, parts: list[bytes], size: int) -> None:
    """Write all parts, `size` bytes together."""
    written = os.writev(descriptor, parts)
    if written < size:  # a signal, or a disk that is nearly full: what is left tells which
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
