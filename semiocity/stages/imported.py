"""Captions and masks made elsewhere, as columns. `semiocity import` pins them (`data/imports.py`), these write them.

Field `source` says where the row's value comes from: {"inputs": ["captions.csv:17"]}.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from semiocity.data.imported_rows import Pinned
from semiocity.errors import UserError
from semiocity.files import canonical
from semiocity.stages.base import BadRow, DatasetInfo, Made, Row, Stage, StageArgs, Tombstone
from semiocity.stages.caption import caption


class ImportArgs(StageArgs):
    folder: Path
    """data/NAME/imports/DIGEST. Not part of the revision: the digest is."""
    digest: str
    missing: Literal["tombstone", "none"] = "tombstone"
    """Rows without an input: they fail, and views that read the column leave them out; or they are there without a
    value."""
    made_by: str = ""
    """What or who made it, for the receipts."""
    device: Literal["cpu"] = "cpu"
    dtype: Literal["float32"] = "float32"
    batch: int = Field(64, ge=1)


class Imported(Stage):
    """What imported columns share."""

    name = "import"
    version = 1

    pinned: Pinned

    def wants(self) -> tuple[str, ...]:
        return ()

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "folder"}

    def paths(self) -> list[str]:
        return [str(root) for root in Pinned(self.args.folder).roots if root.is_dir()]

    def check(self) -> None:
        content = Pinned(self.args.folder).content
        if (content["digest"], content["kind"]) != (self.args.digest, self.args.importer):
            raise UserError(
                f"{self.args.folder}: holds other {content['kind']} ({content['digest']}) than the job names"
            )

    def load(self, info: DatasetInfo, device: str) -> None:
        self.check()
        self.pinned = Pinned(self.args.folder)

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        return [self._row(row) for row in rows]

    def _row(self, row: Row) -> Made | Tombstone:
        values = self.pinned.get(row.key)
        source = ("source.json", canonical({"inputs": [value["origin"] for value in values]}).encode())
        if not values:
            if self.args.missing == "tombstone":
                return Tombstone("permanent", "nothing was imported for this row")
            return Made({"source": source}, self.nothing())
        try:
            made = self.value(row, values)
        except BadRow as error:
            return Tombstone("permanent", str(error))
        return Made({**made.fields, "source": source}, made.scalars)

    @abstractmethod
    def value(self, row: Row, values: list[dict[str, Any]]) -> Made:
        """The row made from its inputs. Raises BadRow."""

    def nothing(self) -> dict[str, Any]:
        """Scalars of a row without an input."""
        return {}


class ImportedCaptionArgs(ImportArgs):
    """`importer = "captions"`."""

    importer: Literal["captions"]


class ImportedCaptions(Imported):
    """Texts; `short` is the first line."""

    column = "caption"
    Args = ImportedCaptionArgs

    def needs(self) -> tuple[str, ...]:
        return ("base.meta",)

    def fields(self) -> dict[str, str]:
        return {"text": "txt", "source": "source.json"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"text": "str", "short": "str", "captioner": "str"}

    def value(self, row: Row, values: list[dict[str, Any]]) -> Made:
        text = values[0]["text"]
        if not text:
            raise BadRow(f"{values[0]['origin']}: the text is empty")
        return caption(text, text.splitlines()[0], "import")

    def nothing(self) -> dict[str, Any]:
        return {"captioner": "import"}


class ImportedMaskArgs(ImportArgs):
    """`importer = "masks"`."""

    importer: Literal["masks"]


class ImportedMasks(Imported):
    """Masks of run-lengths, polygons and PNGs of ids or colours, which must have the size of the packed picture."""

    column = "mask"
    Args = ImportedMaskArgs

    def needs(self) -> tuple[str, ...]:
        return ("base.meta",)

    def fields(self) -> dict[str, str]:
        return {"rle": "mask.json", "source": "source.json"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"masks": "int", "coverage": "float"}

    def value(self, row: Row, values: list[dict[str, Any]]) -> Made:
        from semiocity.stages import imported_masks
        from semiocity.stages.masks import made

        size = (row.scalars["base.height"], row.scalars["base.width"])
        return made(imported_masks.gather(values, size, self.pinned.roots))
