"""The column that a stage makes: which of its shards are there, and what they are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiocity.data.journal import died_in
from semiocity.data.manifest import BASE, ShardPath, column_folder, complete, read_receipt
from semiocity.errors import UserError
from semiocity.stages.base import DatasetInfo, Stage
from semiocity.stages.faults import HUNG, KILLED


@dataclass(frozen=True)
class Target:
    """The column that is being made."""

    stage: Stage
    dataset: Path
    column: str
    revision: str
    parents: dict[str, str]
    """Parent column → revision."""
    info: DatasetInfo

    def path(self, shard: int) -> ShardPath:
        return ShardPath(column_folder(self.dataset, self.column, self.revision), shard)

    def parent_path(self, parent: str, shard: int) -> ShardPath:
        return ShardPath(column_folder(self.dataset, parent, self.parents[parent]), shard)

    def sources(self, shard: int) -> dict[str, dict[str, str]]:
        """Parent → revision and sha256 of its shard. Raises UserError when a parent's shard is missing."""
        found = {}
        for parent in self.parents:
            path = self.parent_path(parent, shard)
            receipt = read_receipt(path)
            if receipt is None:
                raise UserError(f"{path.receipt}: no such shard; run the job that makes column {parent} again")
            found[parent] = {"revision": receipt["revision"], "sha256": receipt["sha256"]}
        return found

    def is_made(self, shard: int) -> bool:
        """Whether the shard is there, from the present parents, with no row to be tried again."""
        path = self.path(shard)
        receipt = read_receipt(path)
        return (
            receipt is not None
            and path.tar.exists()
            and path.parquet.exists()
            and receipt["revision"] == self.revision
            and receipt["parents"] == self.sources(shard)
            and not receipt["tombstones"]["retry"]
        )

    def risky(self, shard: int) -> bool:
        """Whether an attempt may have died in the shard, or rows of it killed their process the last time."""
        return died_in(self.path(shard)) or self._killed(shard)

    def _killed(self, shard: int) -> bool:
        receipt = read_receipt(self.path(shard))
        if receipt is None or not receipt["tombstones"]["retry"]:
            return False
        from semiocity.data.shard import ShardReader

        with ShardReader(self.path(shard)) as reader:
            return any((reason or "").startswith((KILLED, HUNG)) for reason in reader.column("reason"))

    def twin(self, shard: int) -> ShardPath | None:
        """The shard in another revision of the column, if that was made by the same stage from the same bytes.

        A parent that is made anew, as by correcting a few captions, leaves most of its shards as they were.
        """
        wanted = {name: parent["sha256"] for name, parent in self.sources(shard).items()}
        made = {
            "stage": {"name": self.stage.name, "version": self.stage.version, "args": self.stage.settings()},
            "model": self.stage.model_revision(),
            "execution": self.stage.execution(),
            "fields": self.stage.fields(),
            "scalars": self.stage.scalars(),
        }
        made = json.loads(json.dumps(made))
        for folder in sorted(self.path(shard).folder.parent.glob("*/")):
            path = ShardPath(folder, shard)
            if folder.name == self.revision or not complete(path):
                continue
            receipt = read_receipt(path)
            if (
                receipt is not None
                and {name: receipt[name] for name in made} == made
                and {name: parent["sha256"] for name, parent in receipt["parents"].items()} == wanted
                and not receipt["tombstones"]["retry"]
                # The names of the classes are the base's, and no bytes that a receipt knows of.
                and self._base(receipt) == self._base({"shard": shard, "parents": self.sources(shard)})
            ):
                return path
        return None

    def _base(self, receipt: dict[str, Any]) -> str | None:
        """The revision of base that a shard was made from in the end."""
        for name, parent in receipt["parents"].items():
            if name == BASE:
                return str(parent["revision"])
            above = read_receipt(ShardPath(column_folder(self.dataset, name, parent["revision"]), receipt["shard"]))
            return None if above is None else self._base(above)
        return None
