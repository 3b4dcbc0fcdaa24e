"""WebDataset tars that hold fields of several columns side by side, for plain readers.

    OUT/train/00000/00000012.tar    the rows of one shard and split; a shard without any has no file
    OUT/00000/00000012.tar          with --link: the shard itself

A member is called KEY.EXTENSION. The extension is the one that the field has in our shards; where two fields would
have the same, the later is COLUMN.EXTENSION; `--fields EXTENSION=COLUMN.FIELD` says otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from semiocity.data.columns import Dataset
from semiocity.data.export.base import Exporter, Options, Written
from semiocity.data.export.selection import ALL, Payload, Selected, Selection, default_name
from semiocity.data.manifest import FOLDER_SHARDS, ShardPath
from semiocity.data.ustar import BLOCK, RECORD, ustar_header
from semiocity.errors import UserError
from semiocity.files import canonical

SCALARS = "scalars.json"
"""Extension of the member that holds the selected scalars, when there are any."""


class Member(NamedTuple):
    """Where a payload lies in its tar."""

    ext: str
    offset: int
    length: int


class RowInTar(NamedTuple):
    """The members of a row in a tar, for indexes."""

    key: str
    place: int
    """The row's place in our shard."""
    members: list[Member]

    @property
    def begin(self) -> int:
        """Offset of the first member's header."""
        return self.members[0].offset - BLOCK

    @property
    def end(self) -> int:
        """Offset just behind the last member and its padding."""
        last = self.members[-1]
        return last.offset + last.length + -last.length % BLOCK


class TarFile:
    """Writes one tar and remembers what lies where."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb", buffering=1 << 20)
        self._hash = hashlib.sha256()
        self._offset = 0
        self.rows: list[RowInTar] = []

    def add(self, key: str, place: int, members: list[tuple[str, bytes]]) -> None:
        """Append a row's members (extension, payload)."""
        row = RowInTar(key, place, [])
        for ext, payload in members:
            self._write(ustar_header(f"{key}.{ext}", len(payload)))
            row.members.append(Member(ext, self._offset, len(payload)))
            self._write(payload)
            self._write(bytes(-len(payload) % BLOCK))
        self.rows.append(row)

    def close(self) -> str:
        """Close the archive as GNU tar does; returns its sha256."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._offset % RECORD))
        self._file.close()
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)


class WebDataset(Exporter):
    uses: ClassVar[tuple[str, ...]] = ("link",)

    def __init__(self, selection: Selection, options: Options) -> None:
        super().__init__(selection, options)
        self._fields = [name for name in selection.fields if selection.is_field(name)]
        self._scalars = [name for name in selection.fields if not selection.is_field(name)]
        if not self._fields:
            raise UserError("--fields: tars need at least one field that has bytes, such as base.image")
        self._extensions = _extensions(selection, self._fields)
        self._linked = _linkable(selection) if options.link else ""

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        return [f"{name}.{field}" for name, column in dataset.columns.items() for field in column.fields]

    def write(self, shard: int, folder: Path) -> Written:
        return self._link(shard, folder) if self.options.link else self._write(shard, folder)

    def tar_path(self, split: str, shard: int) -> str:
        """Relative path of a tar; the folders keep directories below a thousand tars."""
        return f"{split}/{shard // FOLDER_SHARDS:05d}/{shard:08d}.tar".lstrip("/")

    def index(self, shard: int, tar: str, rows: list[RowInTar], folder: Path) -> list[str]:
        """Write what lies beside the tar of that relative path; returns relative paths. For formats with an index."""
        return []

    def _write(self, shard: int, folder: Path) -> Written:
        tars: dict[str, TarFile] = {}
        for row in self.selection.rows(shard):
            members = self._members(row)
            if not members:
                continue  # a row may have none of the fields, where all are optional
            if row.split not in tars:
                tars[row.split] = TarFile(folder / self.tar_path(row.split, shard))
            tars[row.split].add(row.key, row.place, members)
        paths: list[str] = []
        known, facts = {}, {}
        for split, tar in sorted(tars.items()):
            path = self.tar_path(split, shard)
            known[path] = tar.close()
            facts[path] = {"split": split, "rows": len(tar.rows)}
            paths += [path, *self.index(shard, path, tar.rows, folder)]
        return Written(paths, facts, known)

    def _link(self, shard: int, folder: Path) -> Written:
        dataset = self.selection.dataset
        source = ShardPath(dataset.column(self._linked).folder, shard).tar
        path = self.tar_path("", shard)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        link(source, folder / path)
        rows = rows_in_shard(dataset, self._linked, shard, list(dataset.column(self._linked).fields))
        return Written(
            [path, *self.index(shard, path, rows, folder)],
            {path: {"split": ALL, "rows": len(rows)}},
            {path: dataset.shard_entries(self._linked)[shard]["sha256"]},
        )

    def _members(self, row: Selected) -> list[tuple[str, bytes]]:
        members = []
        for name in self._fields:
            value = row.values[name]
            if isinstance(value, Payload):
                members.append((self._extensions[name] or value.ext, value.data))
        if self._scalars:
            members.append((SCALARS, canonical({name: row.values[name] for name in self._scalars}).encode()))
        return members


def rows_in_shard(dataset: Dataset, column: str, shard: int, fields: Sequence[str]) -> list[RowInTar]:
    """Where the members of `fields` lie in one of our own shards, from its index; rows without any are left out."""
    reader = dataset.reader(column, shard)
    parts = [[reader.column(f"{field}.{part}") for part in Member._fields] for field in fields]
    rows = []
    for place, key in enumerate(reader.keys):
        members = [Member(ext[place], offset[place], length[place]) for ext, offset, length in parts]
        there = sorted((m for m in members if m.offset is not None), key=lambda m: m.offset)
        if there:
            rows.append(RowInTar(key, place, there))
    return rows


def link(source: Path, target: Path) -> None:
    """A hard link; a symbolic one where hard links cannot be had, as from one file system to another."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        target.symlink_to(source)


def _linkable(selection: Selection) -> str:
    """The column whose shards an export with --link consists of. Raises UserError when shards would have to change."""
    columns = sorted({reference.partition(".")[0] for reference in selection.fields.values()})
    if len(columns) != 1:
        raise UserError(f"--link links the shards of one column; these are fields of {', '.join(columns)}")
    column = selection.dataset.column(columns[0])
    chosen = set(selection.fields.values())
    left_out = [name for name in column.fields if f"{column.name}.{name}" not in chosen]
    if left_out:
        raise UserError(
            f"--link links shards as they are, with all fields of {column.name}: --fields {column.name}, not without "
            f"{', '.join(left_out)}"
        )
    if any(value is not None for value in (selection.chosen.split, selection.chosen.filter, selection.chosen.view)):
        raise UserError("--link links shards as they are, with all their rows: leave out --split, --filter and --view")
    if dead := sum(column.tombstones.values()):
        raise UserError(
            f"--link: column {column.name} has {dead} rows that failed; other tools would read their tombstones as "
            "samples. Without --link they are left out"
        )
    return column.name


def _extensions(selection: Selection, names: list[str]) -> dict[str, str | None]:
    """Export name → extension of its members; None where the row's own stays (jpg or png). Raises UserError."""
    taken: dict[str, str] = {}
    chosen: dict[str, str | None] = {}
    for name in names:
        column, _, _field = selection.fields[name].partition(".")
        own = selection.extensions(name)
        if name != default_name(selection.fields[name]):
            own, chosen[name] = [name], name
        elif any(ext in taken for ext in own):
            if len(own) > 1:
                raise UserError(
                    f"--fields {name}: {'|'.join(own)} is taken; name it: EXTENSION={selection.fields[name]}"
                )
            own = [f"{column}.{own[0]}"]
            chosen[name] = own[0]
        else:
            chosen[name] = None
        for ext in [*own, SCALARS]:
            if ext in taken and ext != SCALARS:
                raise UserError(f"--fields: {name} and {taken[ext]} would both be members .{ext}; name one of them")
        taken |= dict.fromkeys(own, name)
    if SCALARS in taken:
        raise UserError(f"--fields: .{SCALARS} is where scalars go; give {taken[SCALARS]} another name")
    return chosen
