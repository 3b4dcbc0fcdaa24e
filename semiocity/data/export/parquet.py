"""Parquet: one file a shard and split, picture bytes and scalars, as the Hub and `datasets` read it.

OUT/data/train-00012-of-00345.parquet
OUT/README.md                           which files belong to which split, licence, counts
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from semiocity.data.export.base import MANIFEST, Parts
from semiocity.data.export.tables import TableExporter
from semiocity.files import canonical, write_atomic


class Parquet(TableExporter):
    def _open(self, path: Path) -> pq.ParquetWriter:
        # Every batch is a row group.
        return pq.ParquetWriter(path, self._table.schema, compression="zstd", use_dictionary=self._table.repeating)

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
