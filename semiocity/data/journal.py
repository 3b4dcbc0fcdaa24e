"""The journal of a shard in the making: finished rows, and which rows were being worked on, beside the temporary tar.

An attempt that is stopped or killed inside a long shard leaves it; the next one goes on where it ends, and sees which
rows killed. It is bound to everything that decides the shard's bytes and worthless to anything else: a foreign one is
thrown away, of a damaged one the beginning that is sound is used.

A file is `MAGIC` and frames: length and crc32 of a body, which is a JSON object's length, the object, and payloads. The
first frame says what the journal is bound to. Whoever goes on writes a file of his own and renames it over the old one:
an owner who slept and wakes up writes into a file that has no name any more.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

from semiocity.data.manifest import ShardPath
from semiocity.data.results import Made, Refused, Tombstone
from semiocity.files import canonical

MAGIC = b"semiocity journal 1\n"
SYNC_S = 5.0
"""What was done longer ago also survives the node; a killed process loses only the batch it was at."""

_LEFT = {"left": True}
_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")

Result = tuple[str, Made | Tombstone | Refused]
"""Key and what became of the row."""


@dataclass(frozen=True)
class At:
    """Rows that an attempt was working on when it ended, without saying a word."""

    start: int
    rows: int
    apart: bool
    """Whether they were worked on in a process of their own, and that of the attempt died all the same."""
    owner: dict[str, Any]
    """Who it was, as in a lease."""


class Journal:
    """The open journal of one shard, whose lease the caller holds.

    An aid only: when it cannot be written (no room, a folder that went away) it is given up, and the work goes on.
    """

    def __init__(self, path: ShardPath, bound: Mapping[str, Any], batch: int, owner: Mapping[str, Any]) -> None:
        """Open the journal of `path`, or begin one. `bound` is what the shard's bytes depend on, `batch` the job's."""
        self.path = path.journal
        self.bound = json.loads(canonical(dict(bound)))
        self.owner = dict(owner)
        self.batch = batch
        """Rows of every batch of this shard: the job's, or fewer when memory did not suffice."""
        self.done = 0
        """Rows that are finished."""
        self.smallest = batch
        """The smallest number of rows that went through together."""
        self.trouble: str | None = None
        """The last exception that took a batch apart."""
        self.died: At | None = None
        self._old: list[tuple[int, int]] = []
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._begin(keep=self._read())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.left()
        self.close()

    def replay(self) -> Iterator[Result]:
        """The finished rows of earlier attempts, in order."""
        for offset, size in self._old:
            assert self._file is not None
            yield from _results(*_unpack(os.pread(self._file.fileno(), size, offset)))

    def at(self, start: int, rows: int, apart: bool = False) -> None:
        """Note that work on these rows begins."""
        self._append({"at": start, "rows": rows, "apart": apart, "owner": self.owner})

    def add(self, start: int, results: Sequence[Result], size: int, trouble: str | None = None) -> None:
        """Keep finished rows, which went through `size` at a time."""
        self.done = start + len(results)
        self.smallest = min(self.smallest, size)
        self.trouble = trouble or self.trouble
        said, payloads = _packed(results)
        self._append({"start": start, "size": size, "trouble": trouble, "results": said}, payloads)
        if time.monotonic() - self._synced > SYNC_S:
            self._sync()

    def left(self) -> None:
        """Note that the attempt ends here by itself, and keep what is done through a crash of the node too."""
        if self.done == 0:
            self.remove()
            return
        self._append(_LEFT)
        self._sync()

    def shrink(self, batch: int) -> None:
        """Begin anew, with batches of so many rows: another execution class, for the whole shard."""
        self.close()
        self._forget(batch)
        self._begin(keep=0)

    def remove(self) -> None:
        """The shard is published, or what was done is not to be used again."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---------------------------------------------------------------- the file

    def _forget(self, batch: int) -> None:
        self.batch = self.smallest = batch
        self.done, self.trouble, self.died, self._old = 0, None, None, []

    def _read(self) -> int:
        """Take over what the file that is there says; returns how many of its frames, but for the first, are sound."""
        most, kept = self.batch, 0
        try:
            with self.path.open("rb") as file:
                frames = _frames(file)
                head = _unpack(next(frames, b""))[0]
                if head.get("bound") != self.bound or not 1 <= head["batch"] <= most:
                    return 0
                self._forget(head["batch"])
                for body in frames:
                    if not self._take(_unpack(body)[0]):
                        break  # what comes before is enough
                    kept += 1
        except OSError:
            return 0
        except (ValueError, KeyError, TypeError, struct.error):  # sound frames, but nothing that we write
            self._forget(most)
            return 0
        return kept

    def _take(self, said: dict[str, Any]) -> bool:
        if "at" in said:
            self.died = At(said["at"], said["rows"], said["apart"], said["owner"])
        elif "left" in said:
            self.died = None
        elif said["start"] == self.done:
            self.done += len(said["results"])
            self.smallest = min(self.smallest, said["size"])
            self.trouble = said["trouble"] or self.trouble
            self.died = None
        else:
            return False
        return True

    def _begin(self, keep: int) -> None:
        """Write a file of our own with the first `keep` frames of the old one, and let it take the other's place."""
        new = self.path.with_name(self.path.name.replace(".journal.", ".journal.new."))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists()
            if not fresh:
                new.unlink(missing_ok=True)  # somebody died at this very place
            self._file = (self.path if fresh else new).open("x+b", buffering=0)
            _write(self._file, MAGIC + _frame(_pack({"bound": self.bound, "batch": self.batch})))
            if keep:
                self._copy(keep)
                os.fsync(self._file.fileno())
            if not fresh:
                new.rename(self.path)
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            self._forget(self.batch)
            self._give_up()

    def _copy(self, count: int) -> None:
        assert self._file is not None
        with self.path.open("rb") as old:
            for body in islice(_frames(old), 1, 1 + count):
                if "results" in _unpack(body)[0]:
                    self._old.append((self._file.tell() + _FRAME.size, len(body)))
                _write(self._file, _frame(body))

    def _append(self, said: Mapping[str, Any], payloads: Sequence[bytes] = ()) -> None:
        if self._file is None:
            return
        try:
            _write(self._file, _frame(_pack(said, payloads)))
        except OSError:
            self._give_up()

    def _sync(self) -> None:
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Go on without: half a frame at the end would hide what came after it."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                file.close()


def died_in(path: ShardPath) -> bool:
    """Whether an attempt at the shard ended without a word."""
    ending = _frame(_pack(_LEFT))
    try:
        with path.journal.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(ending)))
            return file.read() != ending
    except OSError:
        return False


# ---------------------------------------------------------------- frames


def _write(file: IO[bytes], data: bytes) -> None:
    if file.write(data) != len(data):
        raise OSError(f"{file.name}: no room")


def _frame(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _frames(file: IO[bytes]) -> Iterator[bytes]:
    """Bodies of the frames of a file, up to the first that is torn or damaged."""
    if file.read(len(MAGIC)) != MAGIC:
        return
    left = os.fstat(file.fileno()).st_size - len(MAGIC)
    while len(start := file.read(_FRAME.size)) == _FRAME.size:
        size, crc = _FRAME.unpack(start)
        left -= _FRAME.size + size
        if left < 0:
            return
        body = file.read(size)
        if len(body) != size or zlib.crc32(body) != crc:
            return
        yield body


def _pack(said: Mapping[str, Any], payloads: Sequence[bytes] = ()) -> bytes:
    text = json.dumps(said, separators=(",", ":")).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *payloads])


def _unpack(body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The object and the payloads behind it; an empty object for no frame at all."""
    if not body:
        return {}, memoryview(b"")
    (size,) = _LENGTH.unpack_from(body)
    text = body[_LENGTH.size : _LENGTH.size + size]
    return json.loads(text), memoryview(body)[_LENGTH.size + size :]


def _packed(results: Sequence[Result]) -> tuple[list[Any], list[bytes]]:
    said: list[Any] = []
    payloads: list[bytes] = []
    for key, result in results:
        if not isinstance(result, Made):
            said.append([key, *result])
            continue
        fields = [[name, ext, len(payload)] for name, (ext, payload) in result.fields.items()]
        payloads += [payload for _, payload in result.fields.values()]
        said.append([key, fields, result.scalars])
    return said, payloads


def _results(said: Mapping[str, Any], payloads: memoryview) -> Iterator[Result]:
    offset = 0
    for key, *words in said["results"]:
        if len(words) == 3:
            yield key, Refused(*words)
        elif isinstance(words[0], str):
            yield key, Tombstone(*words)
        else:
            fields = {}
            for name, ext, size in words[0]:
                fields[name] = (ext, bytes(payloads[offset : offset + size]))
                offset += size
            yield key, Made(fields, words[1])
