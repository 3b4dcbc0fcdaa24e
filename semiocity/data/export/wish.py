"""What an export was asked for, whatever process asks: plain values, checked against the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from semiocity.config import check
from semiocity.data.columns import Dataset
from semiocity.data.export.base import STATE, Exporter, Options
from semiocity.data.export.selection import Rows, Selection, parse_fields, rows_of
from semiocity.errors import UserError
from semiocity.files import digest, read_json

FORMATS = {
    "parquet": "semiocity.data.export.parquet:Parquet",
    "huggingface": "semiocity.data.export.huggingface:HuggingFace",
    "coco": "semiocity.data.export.coco:Coco",
    "fiftyone": "semiocity.data.export.coco:FiftyOne",
    "webdataset": "semiocity.data.export.tars:WebDataset",
    "energon": "semiocity.data.export.energon:Energon",
    "webshart": "semiocity.data.export.webshart:Webshart",
    "imagefolder": "semiocity.data.export.imagefolder:ImageFolder",
}
"""Format → the class that writes it; imported when it is chosen."""


@dataclass(frozen=True)
class Wish:
    """A dataset, a format, a folder. Can be handed to another process, and written down as JSON."""

    dataset: str
    """Absolute."""
    to: str
    out: str
    """Absolute."""
    fields: tuple[str, ...] = ()
    rows: Rows = field(default_factory=Rows)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Wish:
        return cls(**{**found, "fields": tuple(found["fields"]), "rows": Rows(**found["rows"])})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def exporter(self) -> Exporter:
        """What writes it. Raises UserError for what cannot be."""
        if self.to not in FORMATS:
            raise UserError(f"--to {self.to}: there is no such format; one of {', '.join(FORMATS)}")
        module, _, name = FORMATS[self.to].partition(":")
        kind: type[Exporter] = getattr(import_module(module), name)
        dataset = Dataset.open(Path(self.dataset))
        options = check(self.options, Options, where="export")
        given = options.model_dump(exclude_defaults=True)
        if unused := sorted(set(given) - set(kind.uses)):
            raise UserError(f"--{unused[0]} has no effect with --to {self.to}")
        dataset = rows_of(dataset, (), self.rows).dataset
        fields = parse_fields(dataset, self.fields or kind.default_fields(dataset))
        return kind(Selection(dataset, fields, self.rows), options)

    def identity(self, exporter: Exporter) -> dict[str, Any]:
        """What makes it this export, whatever the dataset's bytes are now."""
        return {
            "export": self.to,
            "version": exporter.version,
            "dataset": exporter.selection.dataset.name,
            "fields": exporter.selection.fields,
            **asdict(self.rows),
            "options": exporter.options.model_dump(mode="json"),
        }


def check_folder(wish: Wish, exporter: Exporter) -> None:
    """Raises UserError unless the folder is new or holds this very export."""
    out = Path(wish.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file of this name is in the way")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        found = read_json(out / STATE / "export.json")
    except FileNotFoundError:
        if [entry.name for entry in out.iterdir()] == [STATE]:
            return  # an export that broke off before anything was written
        raise UserError(f"{out}: not empty, and not an export; choose another folder") from None
    wanted = wish.identity(exporter)
    if found != wanted:
        named = [name for name in wanted if found.get(name) != wanted[name]]
        raise UserError(
            f"{out}: holds another export (it differs in: {', '.join(named)}); choose another folder, or remove it"
        )


def inputs_of(exporter: Exporter) -> str:
    """Changes with the columns' revisions and bytes: what the tasks of one array must agree on."""
    selection = exporter.selection
    columns = {name: selection.dataset.column(name) for name in selection.columns}
    return digest([{name: [c.revision, c.digest] for name, c in columns.items()}, selection.view.digest], 32)
