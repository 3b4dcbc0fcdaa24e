"""Tars with the index that Megatron Energon reads them by, and the files that `energon prepare` makes.

OUT/.nv-meta/.info.yaml      rows of each tar
OUT/.nv-meta/split.yaml      split → tars; `all` with --link
OUT/.nv-meta/dataset.yaml    what a sample is
…/00000012.tar.idx           where each row's first header lies, and the end: little-endian u64
"""

from __future__ import annotations

import struct
from pathlib import Path

from semiocity.data.columns import Dataset
from semiocity.data.export.base import Parts
from semiocity.data.export.tars import RowInTar, WebDataset
from semiocity.data.manifest import BASE
from semiocity.files import canonical, replacing, write_atomic

META = ".nv-meta"


class Energon(WebDataset):
    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        return [f"{BASE}.{field}" for field in dataset.column(BASE).fields]

    def index(self, shard: int, tar: str, rows: list[RowInTar], folder: Path) -> list[str]:
        offsets = [*(row.begin for row in rows), rows[-1].end if rows else 0]
        (folder / f"{tar}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
        return [f"{tar}.idx"]

    def finish(self, parts: Parts, out: Path) -> list[str]:
        # Written line by line: there may be a hundred thousand tars, and their names need no quotes.
        with replacing(out / META / ".info.yaml") as info:
            info.write(b"shard_counts:\n")
            for part in parts:
                for path, facts in part.facts.items():
                    info.write(f"  {path}: {facts['rows']}\n".encode())
        with replacing(out / META / "split.yaml") as split_file:
            split_file.write(b"exclude: []\nsplit_parts:\n")
            for split in sorted({facts["split"] for part in parts for facts in part.facts.values()}):
                split_file.write(f"  {canonical(split)}:\n".encode())
                for part in parts:
                    for path, facts in part.facts.items():
                        if facts["split"] == split:
                            split_file.write(f"  - {path}\n".encode())
        write_atomic(out / META / "dataset.yaml", self._sample().encode())
        return [f"{META}/{name}" for name in (".info.yaml", "split.yaml", "dataset.yaml")]

    def _sample(self) -> str:
        """Pairs of picture and text are Energon's CaptioningSample; anything else comes as a dictionary of bytes.

        Energon's decoder would make RGB floats of label maps, of 16-bit ids too.
        """
        extensions = {
            name: self._extensions[name] or "|".join(self.selection.extensions(name)) for name in self._fields
        }
        image = self.selection.first(f"{BASE}.image")
        texts = [ext for ext in extensions.values() if ext.rpartition(".")[2] == "txt"]
        if image is None or len(texts) != 1:
            return "__module__: megatron.energon\n__class__: CrudeWebdataset\nauto_decode: false\n"
        return (
            "sample_type:\n  __module__: megatron.energon\n  __class__: CaptioningSample\n"
            f"field_map:\n  image: {extensions[image].replace('|', ',')}\n  caption: {texts[0]}\n"
        )
