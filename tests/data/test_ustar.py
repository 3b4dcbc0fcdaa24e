"""What is added to a hashed file is what is on disk, and a failure to bring it there is never lost."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from make_images import dice

from semiocity.data.checksum import crc32
from semiocity.data.ustar import HashedFile


def pieces() -> list[bytes]:
    """More than a chunk of small ones, more than `writev` takes at once, and some that are larger than a chunk."""
    random = dice()
    small = [random.randbytes(random.randrange(700)) for _ in range(6000)]
    large = [random.randbytes(size) for size in (4095, 4096, HashedFile.CHUNK - 1, HashedFile.CHUNK, 5 << 20)]
    many = [random.randbytes(4096) for _ in range(600)]
    mixed = [part for pair in zip(small[:400], many[:400], strict=True) for part in pair]
    return [b"", *small, *large, *mixed, *many]


def written(path: Path, parts: list[bytes]) -> str:
    file = HashedFile(path)
    try:
        for part in parts:
            file.add(part)
        assert file.size == sum(map(len, parts))
        return file.finish().result()
    finally:
        file.close()


@pytest.mark.parametrize("most", [None, 1000])
def test_the_file_and_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    """Also when the system takes only some of what it is given, and when there is a sync after every chunk."""
    monkeypatch.setattr(HashedFile, "SYNC", 1)
    if most is not None:
        writev = os.writev

        def short(descriptor: int, parts: Sequence[bytes]) -> int:
            return writev(descriptor, [b"".join(parts)[:most]])

        monkeypatch.setattr(os, "writev", short)
    parts = pieces()
    sha256 = written(tmp_path / "file", parts)
    data = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == data
    assert sha256 == hashlib.sha256(data).hexdigest()


def test_an_empty_file(tmp_path: Path) -> None:
    assert written(tmp_path / "file", []) == hashlib.sha256().hexdigest()
    assert (tmp_path / "file").read_bytes() == b""


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("call", ["fdatasync", "fsync", "writev"])
def test_what_the_disk_did_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A file system tells once, and then takes everything: the first answer must not be missed."""
    monkeypatch.setattr(HashedFile, "SYNC", 1)
    real: Callable[..., int] = getattr(os, call)
    told: list[bool] = []

    def failing_once(*given: object) -> int:
        if not told:
            told.append(True)
            raise OSError(errno.EIO, "no")
        return real(*given)

    monkeypatch.setattr(os, call, failing_once)
    with pytest.raises(OSError, match="no"):
        written(tmp_path / "file", [bytes(3 << 20)] * 2)
    assert told


def test_crc32_is_zlibs() -> None:
    random = dice()
    for size in (0, 1, 7, 511, 100_003):
        data = random.randbytes(size)
        assert crc32(data) == zlib.crc32(data)
