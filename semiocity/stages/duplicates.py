"""Equal and near-equal pictures. Column `duplicates`, a reduce stage: which rows are one cluster, which of them is
kept, and the split that keeps them together. The rule is in `semiocity/data/duplicates.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from semiocity.config import Strict
from semiocity.stages.base import Made, Tombstone
from semiocity.stages.reduce import Reduce, Stop

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from semiocity.data.columns import Dataset
    from semiocity.data.duplicates import Clusters


class DuplicatesArgs(Strict):
    """The figures behind the defaults are in docs/duplicates.md."""

    distance: int = Field(8, ge=0, le=16)
    """Bits of `hash.phash` in which near duplicates may differ."""
    gradients: int = Field(12, ge=0, le=64)
    """Bits of `hash.gradients` in which they may differ."""
    flat: float = Field(2.0, ge=0)
    """Pictures with less `hash.detail` (grey levels) are compared by their mean colour."""
    split: str = Field("base.split", pattern=r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_.]*$")
    """The scalar that holds each row's split."""
    held_out: tuple[str, ...] = ("test", "val", "validation")
    """Splits that win a cluster, in this order; all others are training and yield to them."""


class Conclusion(NamedTuple):
    """Values of all rows in the order of shards, and where each shard begins."""

    splits: list[str | None]
    clusters: Clusters
    starts: np.ndarray


class Duplicates(Reduce):
    name = "duplicates"
    version = 2
    column = "duplicates"
    Args = DuplicatesArgs

    def needs(self) -> tuple[str, ...]:
        hashes = (
            "pixels_sha256",
            "phash",
            "gradients",
            "detail",
            "deviation",
            "red",
            "green",
            "blue",
            "width",
            "height",
        )
        return (self.args.split, *(f"hash.{name}" for name in hashes))

    def fields(self) -> dict[str, str]:
        return {"record": "duplicates.json"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {
            "cluster": "int",
            "size": "int",
            "exact": "bool",
            "keep": "bool",
            "split": "str",
            "distance": "int",
        }

    def gather(self, table: pa.Table) -> Any:
        from semiocity.data.duplicate_rows import gather

        return gather(table, self.args.split)

    def conclude(self, gathered: Sequence[Any], threads: int, stop: Stop) -> Conclusion:
        from semiocity.data.duplicate_rows import in_shards, join
        from semiocity.data.duplicates import Limits, cluster

        args = self.args
        joined = join(gathered, args.held_out)
        found = cluster(joined.rows, Limits(args.distance, args.gradients, args.flat), threads, stop)
        return Conclusion(joined.splits, in_shards(found, joined.order), joined.starts)

    def rows(self, conclusion: Conclusion, shard: int) -> list[Made | Tombstone]:
        from semiocity.files import canonical

        splits, found, starts = conclusion
        made: list[Made | Tombstone] = []
        for i in range(starts[shard], starts[shard + 1]):
            kept = int(found.representative[i])
            scalars = {
                "cluster": int(found.cluster[i]),
                "size": int(found.size[i]),
                "exact": bool(found.exact[i]),
                "keep": kept == i,
                "split": splits[kept],
                "distance": int(found.distance[i]) if found.distance[i] >= 0 else None,
            }
            # Which row is kept, `cluster` and `keep` say: a record that names another would outlive its removal.
            made.append(Made({"record": ("duplicates.json", canonical(scalars).encode())}, scalars))
        return made

    def report(self, dataset: Dataset, column: str, run: Path) -> None:
        from semiocity.stages.duplicates_report import write

        write(dataset, column, self.args, run)
