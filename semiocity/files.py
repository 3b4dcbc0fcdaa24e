"""Small files: JSON with one spelling, written so that a reader never sees half of it. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from semiocity.errors import UserError


def canonical(value: Any) -> str:
    """One spelling of a JSON value: sorted keys, no spaces, ASCII (names in other encodings survive as escapes)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any, length: int = 10) -> str:
    """The first `length` hex digits of the sha256 of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a crash."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name in the same folder, fsync, rename, fsync the folder. Honours the umask."""
    with replacing(path) as file:
        file.write(data)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what `replacing` left in `folder` of files whose names begin with `name`, when it was killed.

    Nobody may be writing such files now.
    """
    with suppress(OSError):  # another time, then: nobody is in need of its going
        for left in os.listdir(folder):  # noqa: PTH208, a fraction of glob's time
            if left.startswith(f".{name}") and left.endswith(".tmp") and (folder / left).is_file():
                (folder / left).unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """As write_atomic, for what is written bit by bit. When the block raises, the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def adopt(file: Path) -> None:
    """Give a file that a library wrote the mode that the umask asks for (some make 0600), and make it durable."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o666 & ~_umask())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def adopt_folder(folder: Path) -> None:
    """Give a folder that mkdtemp made (0700) the mode that the umask asks for; it goes on handing on its group."""
    folder.chmod((0o777 & ~_umask()) | (folder.stat().st_mode & stat.S_ISGID))


def make_durable(folder: Path) -> None:
    """`adopt` every file below a folder that libraries wrote into. What links lead to is left alone."""
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            make_durable(path)
        else:
            adopt(path)
    fsync_folder(folder)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    fsync(folder)


def fsync(path: Path) -> None:
    """Make what was written to a file, or renamed inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # mkstemp gives 0600; there is no way to read the umask but to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_json(path: Path) -> Any:
    """Read JSON; UserError that names the file when it is damaged. FileNotFoundError passes through."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged JSON: {error}") from None
