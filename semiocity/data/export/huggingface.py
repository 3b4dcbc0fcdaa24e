"""A folder as `datasets.DatasetDict.save_to_disk` leaves it, written without that library: Arrow streams and JSON.

OUT/dataset_dict.json
OUT/train/data-00012-of-00345.arrow    one a shard that has rows of the split
OUT/train/dataset_info.json, state.json
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from semiocity.data.export.base import Parts
from semiocity.data.export.tables import TableExporter
from semiocity.files import digest, write_json


class HuggingFace(TableExporter):
    @contextmanager
    def _open(self, path: Path) -> Iterator[pa.RecordBatchStreamWriter]:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, self._table.schema) as writer:
            yield writer

    def finish(self, parts: Parts, out: Path) -> list[str]:
        splits = parts.splits()
        recipe = self.selection.dataset.recipe
        info = {
            "citation": "",
            "description": recipe["note"],
            "features": self._table.features(),
            "homepage": "",
            "license": recipe["license"],
        }
        written = []
        for split in splits:
            files = [
                {"filename": Path(item["path"]).name}
                for part in parts
                for item in part.paths
                if item["path"].startswith(f"{split}/")
            ]
            write_json(out / split / "dataset_info.json", info)
            write_json(out / split / "state.json", self._state(split, files))
            written += [f"{split}/dataset_info.json", f"{split}/state.json"]
        write_json(out / "dataset_dict.json", {"splits": splits})
        return [*written, "dataset_dict.json"]

    def _state(self, split: str, files: list[dict[str, Any]]) -> dict[str, Any]:
        """`datasets` names its caches by the fingerprint: equal rows, equal fingerprint."""
        return {
            "_data_files": files,
            "_fingerprint": digest([self.selection.view.digest, self.selection.fields, split], 16),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }

    def _path(self, split: str, shard: int) -> str:
        return f"{split}/data-{shard:05d}-of-{self.selection.shards:05d}.arrow"
