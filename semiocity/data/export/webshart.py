"""Tars with webshart's JSON index beside each: where every member lies, sizes of pictures, captions.

    …/00000012.json    {"files": {"KEY.jpg": {"offset", "length", "width", "height", "aspect", "captions", "json_…"}}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semiocity.data.columns import Dataset
from semiocity.data.export.selection import IMAGES
from semiocity.data.export.tars import RowInTar, WebDataset
from semiocity.data.manifest import BASE
from semiocity.files import canonical

CAPTIONS = (("caption", "text"), (BASE, "caption"))
"""Where captions come from: the first of these columns and fields that the dataset has."""


class Webshart(WebDataset):
    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        """Picture and metadata: webshart takes every other picture in a tar for a sample of its own."""
        return [f"{BASE}.image", f"{BASE}.meta"]

    def index(self, shard: int, tar: str, rows: list[RowInTar], folder: Path) -> list[str]:
        base = self.selection.dataset.reader(BASE, shard)
        files: dict[str, dict[str, Any]] = {}
        for row in rows:
            metadata = next((member for member in row.members if member.ext == "json"), None)
            for ext, offset, length in row.members:
                entry: dict[str, Any] = {"offset": offset, "length": length}
                if ext in IMAGES:
                    width, height = base.scalar(row.place, "width"), base.scalar(row.place, "height")
                    entry |= {"width": width, "height": height, "aspect": width / height}
                    if caption := self._caption(shard, row.place):
                        entry["captions"] = caption
                    if metadata is not None:
                        entry["json_path"] = f"{row.key}.json"
                        entry["json_offset"], entry["json_length"] = metadata.offset, metadata.length
                files[f"{row.key}.{ext}"] = entry
        path = f"{tar.removesuffix('.tar')}.json"
        (folder / path).write_text(canonical({"files": files}), encoding="ascii")
        return [path]

    def _caption(self, shard: int, place: int) -> str | None:
        dataset = self.selection.dataset
        for column, field in CAPTIONS:
            if dataset.has(f"{column}.{field}"):
                text = dataset.reader(column, shard).read(place, field)
                return None if text is None else text.decode()
        return None
