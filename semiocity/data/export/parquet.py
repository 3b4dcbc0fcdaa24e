"""Parquet: one file a shard and split, picture bytes and scalars, as the Hub and `datasets` read it.

OUT/data/train-00012-of-00345.parquet
OUT/README.md                           which files belong to which split, licence, counts
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq

from semiocity.data.columns import Dataset
from semiocity.data.export import tables
from semiocity.data.export.base import MANIFEST, Exporter, Options, Parts, Written
from semiocity.data.export.selection import Selection
from semiocity.files import canonical, write_atomic


class Parquet(Exporter):
    def __init__(self, selection: Selection, options: Options) -> None:
        super().__init__(selection, options)
        self._table = tables.Table(selection)

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        return tables.default_fields(dataset)

    def write(self, shard: int, folder: Path) -> Written:
        (folder / "data").mkdir()
        writers: dict[str, pq.ParquetWriter] = {}
        with ExitStack() as open_files:
            for split, batch in self._table.batches(shard):
                if split not in writers:
                    path = folder / self._path(split, shard)
                    writer = pq.ParquetWriter(
                        path, self._table.schema, compression="zstd", use_dictionary=self._table.repeating
                    )
                    writers[split] = open_files.enter_context(writer)
                writers[split].write_batch(batch, row_group_size=batch.num_rows)
        return Written([self._path(split, shard) for split in sorted(writers)])

    def finish(self, parts: Parts, out: Path) -> list[str]:
        recipe = self.selection.dataset.recipe
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in parts.splits()]
        # JSON is YAML too, and leaves nothing to quote.
        configs = canonical([{"config_name": "default", "data_files": files}])
        note = f"{recipe['note']}\n\n" if recipe["note"] else ""
        text = (
            f"---\nconfigs: {configs}\n---\n# {recipe['name']}\n\n{note}"
            f"Licence: {recipe['license'] or 'not stated'}. Licences of rows, counts and provenance: `{MANIFEST}`.\n"
        )
        write_atomic(out / "README.md", text.encode())
        return ["README.md"]

    def _path(self, split: str, shard: int) -> str:
        return f"data/{split}-{shard:05d}-of-{self.selection.shards:05d}.parquet"
