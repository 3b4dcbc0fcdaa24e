"""Listing files below a root without ever leaving it. Names are bytes on disk, text by `keys.to_text` here."""

# pathlib takes no names that are bytes:
# ruff: noqa: PTH110, PTH112, PTH114, PTH115, PTH116, PTH118
from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from semiocity.data.keys import printable, to_bytes, to_text
from semiocity.data.sources.base import Rejection
from semiocity.errors import UserError

UNREAD = frozenset({"heic", "heif", "jxl", "jp2", "j2k", "jpf", "jpx"})
"""Extensions of pictures of kinds that are not read: seen and rejected, unless what they hold is another kind."""
IMAGE_EXTENSIONS = UNREAD | {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"}


@dataclass(frozen=True)
class Found:
    """One file below the root."""

    name: str
    """Relative to the root, with `/`."""
    size: int
    problem: Rejection | None = None
    """Why the file must not be read."""
    is_folder: bool = False
    """A link to a folder outside the root, which is not entered."""

    @property
    def is_picture(self) -> bool:
        """Whether it counts as a picture file seen; what may hide a folder of them does."""
        return self.is_folder or self.extension in IMAGE_EXTENSIONS

    @property
    def stem(self) -> str:
        """The name without its last extension."""
        return split_name(self.name)[0]

    @property
    def extension(self) -> str:
        """The last extension in lower case, without the dot; empty when there is none."""
        return split_name(self.name)[1]


def split_name(name: str) -> tuple[str, str]:
    """(name without its last extension, that extension in lower case). A leading dot begins no extension."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.rpartition(".")
    if not dot or not stem:
        return name, ""
    return folder + slash + stem, extension.lower()


def check_root(root: Path) -> Path:
    """The absolute root of a source. Raises UserError unless it is a folder."""
    if not root.is_dir():
        raise UserError(f"source.root: {root} is no folder; say where the pictures are: --set source.root=DIR")
    return root.resolve()


def walk(root: Path, below: str = "", also: Sequence[Path] = ()) -> Iterator[Found]:
    """Every file below `root/below`, in sorted order, hidden files and folders left out.

    Links are followed into the folders `also`. Others to folders are not: inside the root their files are seen under
    their own names, and what leads out is one file with a problem. Links to files are followed when they stay inside.
    Raises UserError when `below` is a link itself, or a folder of `also` does not exist.
    """
    check_no_link(root, below, also)
    real = os.path.realpath(os.fsencode(root))
    for folder in also:
        if not Path(folder).is_dir():
            raise UserError(f"source.link_roots: {folder} is no folder")
    allowed = [os.path.realpath(os.fsencode(folder)) for folder in also]
    yield from _walk(real, to_bytes(below), _Roots(real, allowed), ())


def check_no_link(root: Path, below: str, also: Sequence[Path] = ()) -> None:
    """Raises UserError when the folder `root/below` is a link or lies behind one, except into one of `also`."""
    real = Path(root).resolve()
    target = (real / below).resolve()
    if target != real / below and not any(target.is_relative_to(folder.resolve()) for folder in also):
        raise UserError(f"{Path(root) / below}: a symbolic link; it must be a folder inside {root}")


class _Roots(NamedTuple):
    """Where links may lead: real paths."""

    own: bytes
    also: list[bytes]

    def inside(self, target: bytes) -> bool:
        return _below(target, self.own) or self.allows(target)

    def allows(self, target: bytes) -> bool:
        """Whether it lies in a declared folder outside the root."""
        return any(_below(target, folder) for folder in self.also)


def _below(path: bytes, folder: bytes) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _walk(base: bytes, below: bytes, roots: _Roots, behind: tuple[bytes, ...]) -> Iterator[Found]:
    """`behind` are the real paths of the linked folders above, so that no circle of links is walked."""
    with os.scandir(os.path.join(base, below) if below else base) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(b"."):
            continue
        relative = below + b"/" + entry.name if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(base, relative, roots, behind)
            continue
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if roots.allows(target) and os.path.isdir(target) and not any(_below(b, target) for b in behind):
                yield from _walk(base, relative, roots, (*behind, target))
                continue
        found = _look(entry, to_text(relative), roots)
        if found is not None:
            yield found


def _look(entry: os.DirEntry[bytes], name: str, roots: _Roots) -> Found | None:
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not roots.inside(target):
            problem = Rejection(name, "outside_root", f"links to {printable(to_text(target))}")
            return Found(name, 0, problem, is_folder=os.path.isdir(target))
        if not os.path.exists(target):
            return Found(name, 0, Rejection(name, "broken_link", f"links to {printable(to_text(target))}"))
    status = entry.stat()
    if stat.S_ISDIR(status.st_mode):
        return None  # a link to a folder inside the root
    if not stat.S_ISREG(status.st_mode):
        return Found(name, 0, Rejection(name, "not_a_file", stat.filemode(status.st_mode)))
    return Found(name, status.st_size)


def look_up(root: Path, name: str, also: Sequence[Path] = ()) -> Found | None:
    """One file that a table or an index names relative to `root`, as `walk` would find it; None where there is none.

    A name that leads out of the root (absolute, through `..` or a link) is found with a problem, unless it leads into
    one of the folders `also`.
    """
    base = os.path.realpath(os.fsencode(root))
    roots = _Roots(base, [os.path.realpath(os.fsencode(folder)) for folder in also])
    path = os.path.join(base, to_bytes(name))
    target = os.path.realpath(path)
    if not roots.inside(target):
        return Found(name, 0, Rejection(name, "outside_root", f"leads to {printable(to_text(target))}"))
    try:
        status = os.stat(target)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return Found(name, 0, Rejection(name, "broken_link", f"links to {printable(to_text(target))}"))
        return None
    except OSError as error:  # a circle of links, a name too long, no permission
        return Found(name, 0, Rejection(name, "unreadable", error.strerror or str(error)))
    if not stat.S_ISREG(status.st_mode):
        return Found(name, 0, Rejection(name, "not_a_file", stat.filemode(status.st_mode)))
    return Found(name, status.st_size)


class NotAllowed(Exception):
    """What was opened is no regular file inside the root; `reason` is one of `reasons.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def open_below(root: Path, name: str, also: Sequence[Path] = ()) -> int:
    """A descriptor of a file named as `walk` names it, for reading. Raises OSError.

    Links may have changed since the plan was made: where the file really is, is asked of the open descriptor. Raises
    NotAllowed when that is neither below `root` nor below one of `also`, or no regular file.
    """
    path = os.path.join(os.path.realpath(os.fsencode(root)), to_bytes(name))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not make us wait
    try:
        try:
            target = os.readlink(b"/proc/self/fd/%d" % descriptor)
        except OSError:  # no Linux
            target = os.path.realpath(path)
        roots = _Roots(os.path.realpath(os.fsencode(root)), [os.path.realpath(os.fsencode(folder)) for folder in also])
        if not roots.inside(target):
            raise NotAllowed("outside_root", f"leads to {printable(to_text(target))}")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotAllowed("not_a_file", stat.filemode(os.fstat(descriptor).st_mode))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
