"""Headers of plain USTAR members, and the digest of a tar while it is written."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

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
    return raw.ljust(100, b"\0") + _MODE + octal + _TIME + b"%06o\0 " % total + _TAIL


class BackgroundDigest:
    """sha256 of what is written, computed beside the writing: hashing takes as long as all the rest together."""

    CHUNK = 1 << 20
    WAITING = 4
    """Chunks that may wait to be hashed; then the writer waits."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._waiting: deque[Future[None]] = deque()
        self._parts: list[bytes] = []
        self._size = 0

    def update(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= self.CHUNK:
            self._hand_over()

    def hexdigest(self) -> str:
        """Of everything so far; waits for it."""
        self._hand_over()
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest()

    def close(self) -> None:
        self._pool.shutdown()

    def _hand_over(self) -> None:
        while len(self._waiting) >= self.WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._take, self._parts))
        self._parts, self._size = [], 0

    def _take(self, parts: list[bytes]) -> None:
        self._hash.update(b"".join(parts))  # large pieces: hashlib lets go of the interpreter for each
