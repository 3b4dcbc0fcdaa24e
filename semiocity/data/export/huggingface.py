"""A folder as `datasets.DatasetDict.save_to_disk` leaves it, written without that library: Arrow streams and JSON.

OUT/dataset_dict.json
OUT/train/data-00012-of-00345.arrow    one a shard that has rows of the split
OUT/train/dataset_info.json, state.json
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from semiocity.data.columns import Dataset
from semiocity.data.export import tables
from semiocity.data.export.base import Exporter, Options, Parts, Written
from semiocity.data.export.selection import Selection
from semiocity.files import digest, write_json


class HuggingFace(Exporter):
    def __init__(self, selection: Selection, options: Options) -> None:
        super().__init__(selection, options)
        self._table = tables.Table(selection)

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        return tables.default_fields(dataset)

    def write(self, shard: int, folder: Path) -> Written:
        writers: dict[str, pa.RecordBatchStreamWriter] = {}
        with ExitStack() as open_files:
            for split, batch in self._table.batches(shard):
                if split not in writers:
                    path = folder / self._path(split, shard)
                    path.parent.mkdir()
                    sink = open_files.enter_context(pa.OSFile(str(path), "wb"))
                    writers[split] = open_files.enter_context(pa.ipc.new_stream(sink, self._table.schema))
                writers[split].write_batch(batch)
        return Written([self._path(split, shard) for split in sorted(writers)])

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
