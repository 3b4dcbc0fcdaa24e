"""Tars with webshart's JSON index beside each: where every member lies, sizes of pictures, captions.

    OUT/train/00000012.tar
    OUT/train/00000012.json    {"path", "filesize", "files": [{"path", "offset", "length", "width", "captions", …}]}

The index names the rows and fields that were asked for, so the tar may hold more: where all of them are of one column,
it is a link to the shard. The caption is in the index, wherever it comes from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from semiocity.data.columns import Dataset
from semiocity.data.export.base import Options, Written
from semiocity.data.export.selection import IMAGES, Selection
from semiocity.data.export.tars import RowInTar, WebDataset, link, rows_in_shard
from semiocity.data.manifest import BASE, ShardPath
from semiocity.errors import UserError
from semiocity.files import canonical

CAPTIONS = ("caption.text", f"{BASE}.caption")


class Webshart(WebDataset):
    uses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, selection: Selection, options: Options) -> None:
        super().__init__(selection, options)
        if self._scalars:
            raise UserError(f"--fields: webshart's index has no place for scalars such as {self._scalars[0]}")
        caption = selection.first(*CAPTIONS)
        self._caption = selection.fields[caption].split(".") if caption else None
        columns = sorted({selection.fields[name].partition(".")[0] for name in self._fields if name != caption})
        self._column = columns[0] if len(columns) == 1 else None
        if self._caption is not None and self._caption[0] != self._column:
            self._fields = [name for name in self._fields if name != caption]

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        """Picture, metadata and caption: webshart takes every other picture in a tar for a sample of its own."""
        return [f"{BASE}.image", f"{BASE}.meta", *[ref for ref in CAPTIONS if dataset.has(ref)][:1]]

    def tar_path(self, split: str, shard: int) -> str:
        """webshart does not look into folders: all tars of a split lie in one."""
        return f"{split}/{shard:08d}.tar"

    def write(self, shard: int, folder: Path) -> Written:
        if self._column is None:
            return self._write(shard, folder)
        dataset = self.selection.dataset
        wanted = [self.selection.fields[name].partition(".")[2] for name in self._fields]
        found = {row.place: row for row in rows_in_shard(dataset, self._column, shard, wanted)}
        rows: dict[str, list[RowInTar]] = {}
        splits = self.selection.splits_of(shard)
        for place in self.selection.places(shard):
            if place in found:
                rows.setdefault(splits[place], []).append(found[place])
        source = ShardPath(dataset.column(self._column).folder, shard).tar
        paths, known = [], {}
        for split in sorted(rows):
            path = self.tar_path(split, shard)
            (folder / path).parent.mkdir()
            link(source, folder / path)
            known[path] = dataset.shard_entries(self._column)[shard]["sha256"]
            paths += [path, *self.index(shard, path, rows[split], folder)]
        return Written(paths, known=known)

    def index(self, shard: int, tar: str, rows: list[RowInTar], folder: Path) -> list[str]:
        base = self.selection.dataset.reader(BASE, shard)
        files: list[dict[str, Any]] = []
        for row in rows:
            metadata = next((member for member in row.members if member.ext == "json"), None)
            for ext, offset, length in row.members:
                entry: dict[str, Any] = {"path": f"{row.key}.{ext}", "offset": offset, "length": length}
                if ext in IMAGES:
                    width, height = base.scalar(row.place, "width"), base.scalar(row.place, "height")
                    entry |= {"width": width, "height": height, "aspect": width / height}
                    if caption := self._caption_of(shard, row.place):
                        entry["captions"] = caption
                    if metadata is not None:
                        entry["json_path"] = f"{row.key}.json"
                        entry["json_offset"], entry["json_length"] = metadata.offset, metadata.length
                files.append(entry)
        path = tar.removesuffix(".tar") + ".json"
        content = {
            "path": Path(tar).name,
            "filesize": (folder / tar).stat().st_size,
            "includes_image_geometry": True,
            "files": files,
        }
        (folder / path).write_text(canonical(content), encoding="ascii")
        return [path]

    def _caption_of(self, shard: int, place: int) -> str | None:
        if self._caption is None:
            return None
        column, field = self._caption
        text = self.selection.dataset.reader(column, shard).read(place, field)
        return None if text is None else text.decode()
