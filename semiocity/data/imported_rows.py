"""What `imports.py` pinned: reading it, and taking rows out of it for good. Login-node code."""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from semiocity.config import canonical, read_json, write_json
from semiocity.data.layout import IMPORTS
from semiocity.data.listing import id_hash
from semiocity.data.manifest import check_format
from semiocity.errors import UserError
from semiocity.files import replacing

CONTENT, UNMATCHED = "import.json", "unmatched.jsonl"


class Pinned:
    """Reads an import, a block of rows at a time. Raises UserError when it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / CONTENT
        try:
            self.content: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run `semiocity import` again") from None
        check_format(self.content, path)
        self.roots = [Path(root) for root in self.content["roots"]]
        self._first = [block[0] for block in self.content["blocks"]]
        self._block = -1
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def get(self, key: str) -> list[dict[str, Any]]:
        """The values of a row, each with its `origin`; empty where there is none."""
        block = bisect.bisect_right(self._first, key) - 1
        if block < 0:
            return []
        if block != self._block:
            self._rows = {row["key"]: row["values"] for row in map(json.loads, self.lines(block))}
            self._block = block
        return self._rows.get(key, [])

    @property
    def blocks(self) -> int:
        return len(self._first)

    def lines(self, block: int) -> list[bytes]:
        """The lines of a block, each with its end."""
        _, offset, length, sha256 = self.content["blocks"][block]
        path = self.folder / self.content["file"]
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{path}: damaged; remove its folder and run `semiocity import` again")
        return data.splitlines(keepends=True)

    def find(self, digits: str) -> Iterator[str]:
        """Keys whose hash is a beginning of `digits`."""
        first = max(0, bisect.bisect_left(self._first, digits[:10]) - 1)
        for block in range(first, self.blocks):
            if self._first[block][:10] > digits[:10]:
                return
            keys = (json.loads(line)["key"] for line in self.lines(block))
            yield from (key for key in keys if digits.startswith(key.partition("-")[0]))


def forget(dataset: Path, hashes: set[str]) -> None:
    """Take the rows with these id_sha256 out of every import, and the inputs that would have been theirs.

    May be cut short and repeated. The digest stays that of the input: what was made from it is named by it.
    """
    for folder in _imports(dataset):
        pinned = Pinned(folder)
        gone = {key for digits in hashes for key in pinned.find(digits)}
        if gone:
            _rewrite(pinned, gone)
        for path in folder.glob("rows*.jsonl"):
            if path.name != pinned.content["file"]:
                path.unlink()
        named = _named_in(hashes)
        lines = (folder / UNMATCHED).read_bytes().splitlines(keepends=True)
        if any(named(line) for line in lines):
            with replacing(folder / UNMATCHED) as file:
                file.writelines(line for line in lines if not named(line))


def remembered(dataset: Path, hashes: set[str]) -> Iterator[Path]:
    """Files of imports that still name rows with these id_sha256."""
    for folder in _imports(dataset):
        pinned = Pinned(folder)
        if any(True for digits in hashes for _ in pinned.find(digits)):
            yield folder / pinned.content["file"]
        if any(map(_named_in(hashes), (folder / UNMATCHED).read_bytes().splitlines())):
            yield folder / UNMATCHED


def stem_of(name: str) -> str:
    """A name without its extension: `a/b.c.jpg` → `a/b.c`."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix else name


def _imports(dataset: Path) -> list[Path]:
    folders = sorted((Path(dataset) / IMPORTS).glob("*/"))
    return [folder for folder in folders if re.fullmatch(r"[0-9a-f]{10}", folder.name)]


def _named_in(hashes: set[str]) -> Callable[[bytes], bool]:
    def named(line: bytes) -> bool:
        name = json.loads(line)["name"]
        return not hashes.isdisjoint({id_hash(name), id_hash(stem_of(name))})

    return named


def _rewrite(pinned: Pinned, gone: set[str]) -> None:
    """A file of another name first, then what names it: a reader sees the old rows or the new ones."""
    blocks = []
    name = f"rows-{hashlib.sha256(canonical([pinned.content['file'], sorted(gone)]).encode()).hexdigest()[:10]}.jsonl"
    with replacing(pinned.folder / name) as file:
        for block in range(pinned.blocks):
            first, *_ = pinned.content["blocks"][block]
            data = b"".join(line for line in pinned.lines(block) if json.loads(line)["key"] not in gone)
            # A key that was taken down must not stay as the name of a block either.
            first = next(iter(json.loads(line)["key"] for line in data.splitlines()), first.partition("-")[0])
            blocks.append([first, file.tell(), len(data), hashlib.sha256(data).hexdigest()])
            file.write(data)
    pinned.content = {**pinned.content, "file": name, "rows": pinned.content["rows"] - len(gone), "blocks": blocks}
    write_json(pinned.folder / CONTENT, pinned.content)
