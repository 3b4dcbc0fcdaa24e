"""The dataset that a gallery shows, its index, and the building of it in the background.

An index is kept in DATASET/.browse/KEY; where that cannot be written, in the user's cache folder. When the dataset's
manifest changes while it is shown, the next look at the page has a new index built; the old one is shown meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiocity.data.columns import Dataset
from semiocity.data.layout import GALLERY
from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardError, ShardReader
from semiocity.errors import UserError
from semiocity.files import digest, fsync_folder
from semiocity.ui.browse import building, index
from semiocity.ui.browse.chosen import Views
from semiocity.ui.browse.index import Index, Options
from semiocity.ui.browse.query import Searcher

CONTENTS_ROWS = 20_000
"""Up to so many rows the tars are opened for the index unless told otherwise: it takes seconds."""
ROWS_MOST = 20_000_000
"""More rows are refused: their index would fill the memory that the node's other users need."""
OPEN_SHARDS = 64


@dataclass
class Progress:
    """Of the index that is being built."""

    done: int = 0
    shards: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s


class Shelf:
    """One state of a dataset with its index."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.dataset = dataset
        self.index = Index(folder)
        self.index.views = Views(dataset)
        self.searcher = Searcher(self.index)
        self.version = digest(folder.name)
        """Names this state in URLs that browsers may keep."""
        self._readers: dict[tuple[str, int], ShardReader] = {}
        self._lock = threading.Lock()

    def reader(self, column: str, shard: int) -> ShardReader:
        """An open reader; the last few are kept. Safe to use from several threads. Raises ShardError."""
        with self._lock:
            place = (column, shard)
            found = self._readers.pop(place, None)
            if found is None:
                found = ShardReader(ShardPath(self.dataset.column(column).folder, shard))
            self._readers[place] = found  # last used, last to go
            while len(self._readers) > OPEN_SHARDS:
                self._readers.pop(next(iter(self._readers)))
            return found

    def payload(self, row: int, column: str, name: str) -> bytes | None:
        """A field of a row of the index; None when the row has none. Raises ShardError."""
        place = self.index.read(row, ["shard", "row", "key"])
        reader = self.reader(column, place["shard"])
        if place["row"] >= len(reader) or reader.keys[place["row"]] != place["key"]:
            raise ShardError(f"{reader.path}: made anew since the gallery was opened; load the page again")
        # Opening a shard's tar and its lists of offsets happens at the first read, and is not safe from two threads.
        with self._lock:
            return reader.read(place["row"], name)


class Library:
    """Gives the present shelf, and sees to it that there is one."""

    def __init__(
        self,
        path: Path,
        shards: tuple[int, int] | None = None,
        contents: bool | None = None,
        cache: Path | None = None,
    ) -> None:
        """`contents` None: the tars are opened where there are few rows. `cache`: where indexes go instead of
        DATASET/.browse. Raises UserError for what is no dataset, shards that do not exist, or too many rows."""
        self.path = Path(path).absolute()
        self._shards = shards
        self._contents = contents
        self._cache = cache
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.shelf: Shelf | None = None
        self.progress: Progress | None = None
        self.error: str | None = None
        self._seen = _stamp(self.path)
        self._start(Dataset.open(self.path))

    def refresh(self) -> None:
        """Build anew when the dataset's manifest has changed since. Cheap when it has not."""
        with self._lock:
            now = _stamp(self.path)
            if now == self._seen or self.progress is not None:
                return
            self._seen = now
        try:
            self._start(Dataset.open(self.path))
        except UserError as error:
            self.error = str(error)

    def wait(self) -> Shelf:
        """The shelf, when its index has been built. Raises UserError when that failed."""
        if self._thread is not None:
            self._thread.join()
        if self.shelf is None:
            raise UserError(self.error or f"{self.path}: the index was not built")
        return self.shelf

    def close(self) -> None:
        """Stop building."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    # ---------------------------------------------------------------- building

    def options(self, dataset: Dataset) -> Options:
        """Raises UserError when the index would be too large."""
        shards = index.chosen_shards(dataset, Options(self._shards))
        whole = len(shards) == dataset.shards
        rows = dataset.rows() if whole else sum(dataset.shard_entries("base")[s]["rows"] for s in shards)
        if rows > ROWS_MOST:
            each = max(1, round(ROWS_MOST / rows * len(shards)))
            raise UserError(
                f"{self.path}: {rows} rows; a gallery shows at most {ROWS_MOST}. Name some of the {dataset.shards} "
                f"shards, such as --shards 0:{each}"
            )
        contents = rows <= CONTENTS_ROWS if self._contents is None else self._contents
        return Options(None if whole else self._shards, contents)

    def _start(self, dataset: Dataset) -> None:
        options = self.options(dataset)
        name = index.key_of(dataset, options)
        for root in self._roots():
            if (root / name / "facts.json").exists():
                try:
                    self.shelf, self.error = Shelf(dataset, root / name), None
                    return
                except UserError:
                    shutil.rmtree(root / name, ignore_errors=True)
        self.progress, self.error = Progress(shards=len(index.chosen_shards(dataset, options))), None
        self._thread = threading.Thread(target=self._build, args=(dataset, options, name), daemon=True)
        self._thread.start()

    def _build(self, dataset: Dataset, options: Options, name: str) -> None:
        try:
            self.shelf = Shelf(dataset, self._built(dataset, options, name))
        except building.Stopped:
            self.error = "stopped"
        except UserError as error:
            self.error = str(error)
        except Exception as error:
            # Nobody else would tell: the thread dies, and the page would wait for ever.
            self.error = f"{self.path}: building the index failed: {type(error).__name__}: {error}"
        finally:
            self.progress = None

    def _built(self, dataset: Dataset, options: Options, name: str) -> Path:
        root = self._writable_root()
        _remove_leftovers(root)
        temporary = root / f".{name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            building.build(dataset, temporary, options, self._report, self._stop.is_set)
            _forget(root, keep=name.partition("-")[0])
            try:
                temporary.rename(root / name)
            except OSError:
                if not (root / name / "facts.json").exists():  # else another gallery was quicker
                    raise
            fsync_folder(root)
        except OSError as error:
            raise UserError(f"{temporary}: {error.strerror}; --cache names another folder for the index") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return root / name

    def _report(self, done: int, shards: int) -> None:
        if self.progress is not None:
            self.progress.done, self.progress.shards = done, shards

    def _roots(self) -> list[Path]:
        if self._cache is not None:
            return [self._cache]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return [self.path / GALLERY, home / "semiocity" / "browse" / f"{self.path.name}-{digest(str(self.path))}"]

    def _writable_root(self) -> Path:
        for root in self._roots():
            try:
                root.mkdir(parents=True, exist_ok=True)
                probe = root / f".probe.{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError:
                continue
            return root
        raise UserError(f"{', '.join(map(str, self._roots()))}: not writable; name a folder for the index with --cache")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = (path / "manifest.json").stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


def _forget(root: Path, keep: str) -> None:
    """Remove indexes of the dataset's former states. Who still shows one has it mapped and keeps it."""
    for entry in root.iterdir():
        if entry.is_dir() and not entry.name.startswith(".") and entry.name.partition("-")[0] != keep:
            shutil.rmtree(entry, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Temporary folders that nobody has touched for a day were left by the dead."""
    for entry in root.glob(".*.tmp"):
        try:
            if time.time() - entry.stat().st_mtime > 86_400:
                shutil.rmtree(entry, ignore_errors=True)
        except FileNotFoundError:
            continue


def show_progress(library: Library, stream: Any = sys.stderr) -> None:
    """Tell the terminal how far the index is, until it is built."""
    shown = False
    while (progress := library.progress) is not None:
        if stream.isatty():
            stream.write(f"\r  index: {progress.done} of {progress.shards} shards, {progress.elapsed_s:.0f} s ")
            stream.flush()
            shown = True
        time.sleep(0.2)
    if shown:
        stream.write("\n")
