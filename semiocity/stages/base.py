"""What a stage is, which there are, and what names its output. Importable on a login node: pydantic only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from semiocity.config import Strict, check, digest
from semiocity.data.manifest import TO_CATCH_UP, behind
from semiocity.data.results import Made, Tombstone
from semiocity.errors import UserError


class Methods(NamedTuple):
    """A stage that can be done in several ways: `args.SELECTOR` names the class."""

    selector: str
    classes: dict[str, str]


STAGES: dict[str, Methods] = {
    "caption": Methods(
        "captioner",
        {
            "labels": "semiocity.stages.caption:LabelCaption",
            "blip2": "semiocity.stages.caption:Blip2Caption",
        },
    ),
    "segment": Methods(
        "segmenter",
        {
            "superpixels": "semiocity.stages.segment:SuperpixelSegment",
            "sam": "semiocity.stages.segment:SamSegment",
        },
    ),
    "import": Methods(
        "importer",
        {
            "captions": "semiocity.stages.imported:ImportedCaptions",
            "masks": "semiocity.stages.imported:ImportedMasks",
        },
    ),
    "latent": Methods("encoder", {"flux": "semiocity.stages.latent:FluxLatent"}),
    "text": Methods("encoder", {"flux": "semiocity.stages.text:FluxText"}),
    "hash": Methods("hasher", {"dct": "semiocity.stages.hash:Hash"}),
}
"""Stage → its ways and the classes that do them; imported when they are chosen."""

STAGES_OF = {"caption": "caption", "mask": "segment", "hash": "hash", "latent": "latent", "text": "text"}
"""Column → the stage that makes it under its default name, for messages."""


class Row(NamedTuple):
    """One row of the parents, as a stage sees it. Names are COLUMN.FIELD and COLUMN.SCALAR."""

    key: str
    fields: dict[str, bytes | None]
    """All of `needs()` with a payload; of `wants()` those that the row has, else None."""
    scalars: dict[str, Any]


class BadRow(Exception):
    """This row's input cannot be used; the message is the tombstone's reason."""


class BrokenStage(Exception):
    """A stage breaks its contract, as by giving fewer results than it got rows: a fault in code, not in any row."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a stage may know of the dataset beyond its rows."""

    name: str
    classes: tuple[str, ...]
    """Name of every class id of the label maps; empty when the dataset has none."""
    ignore_id: int | None
    """Label id that means "unknown"."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> DatasetInfo:
        """From a dataset's manifest."""
        recipe = facts["recipe"]
        return cls(
            name=facts["name"],
            classes=tuple(entry["name"] for entry in recipe.get("classes") or ()),
            ignore_id=recipe.get("ignore_id"),
        )


class StageArgs(Strict):
    """Arguments that every stage has: its execution class. The same class gives the same bytes."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: int = Field(1, ge=1)
    """Rows in one call of `process`. Batches have fixed borders inside a shard."""
    batch_timeout_s: float = Field(3600, ge=0)
    """Seconds after which a batch counts as hung: the task ends, comes back, and finds the row. 0: never."""
    rehearse_slow_batch_s: float = Field(0, ge=0)
    """Seconds added to each batch, to rehearse what happens when a task is killed. Changes no byte."""


class Stage(ABC):
    """One way to make a column. Construction and everything above `load` is cheap and safe on a login node."""

    name: ClassVar[str]
    """Key of STAGES."""
    version: ClassVar[int]
    """Raised whenever the same input and arguments would give other bytes."""
    column: ClassVar[str]
    """Name of the new column unless the job names another."""
    Args: ClassVar[type[StageArgs]]

    info: DatasetInfo | None = None
    """The dataset that the stage runs over; None on a login node."""

    def __init__(self, args: Any) -> None:
        self.args = args

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Fields without which a row cannot be made, such as "base.image". Their columns are the parents."""

    def wants(self) -> tuple[str, ...]:
        """Further fields of the parents that are read where they exist."""
        return ()

    @abstractmethod
    def fields(self) -> dict[str, str]:
        """Fields of the new column and their extensions."""

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        """Scalars of the new column and their types. They may depend on `info`."""
        return {}

    def paths(self) -> list[str]:
        """Folders outside the dataset that tasks read; they are mounted into the container."""
        return []

    def check(self) -> None:
        """Refuse before submission what could not run: weights that are missing or unfit. Raises UserError."""
        return

    def model_revision(self) -> str | None:
        """Digest of the weights' contents; None without weights."""
        return None

    def settings(self) -> dict[str, Any]:
        """The arguments that, beside the execution class and the weights, decide the bytes."""
        return self.args.model_dump(mode="json", exclude={*StageArgs.model_fields, "model"})

    def execution(self) -> dict[str, Any]:
        """The execution class."""
        return {"device": self.args.device, "dtype": self.args.dtype, "batch": self.args.batch}

    def load(self, info: DatasetInfo, device: str) -> None:
        """Prepare for `process`: import what is heavy and load weights onto `device`. Raises UserError."""
        return

    @abstractmethod
    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        """Make one batch: as many results as rows, in their order.

        A row whose input is bad becomes a Tombstone here. An exception makes the caller try the rows one by one, lack
        of memory half as many at a time. NotImplementedError and BrokenStage fail the task.
        """


def make_stage(name: str, args: Mapping[str, Any], where: str = "args") -> Stage:
    """The stage `name` with checked arguments. UserErrors begin with `where`, such as `jobs/caption.toml: args`."""
    if name not in STAGES:
        raise UserError(f"stage {name!r} does not exist; there are {', '.join(STAGES)}")
    selector, classes = STAGES[name]
    chosen = args.get(selector)
    if chosen is None:
        raise UserError(f"{where}: {selector}: missing; one of {', '.join(classes)}")
    if chosen not in classes:
        raise UserError(f"{where}: {selector}: {chosen!r} does not exist; one of {', '.join(classes)}")
    module, _, attribute = classes[chosen].partition(":")
    stage: type[Stage] = getattr(import_module(module), attribute)
    return stage(check(args, stage.Args, where))


def reads_of(made_by: Mapping[str, Any]) -> list[str]:
    """The fields that a stage read, from what a receipt says of it; empty when that is not known (any more)."""
    if made_by["name"] == "edit":  # by hand: what it was before is what counts
        return reads_of(made_by["args"]["of"]["stage"])
    if made_by["name"] not in STAGES:
        return []
    for model in ({}, {"model": "."}):  # a receipt does not name the folder of the weights
        try:
            stage = make_stage(made_by["name"], {**made_by["args"], **model})
        except UserError:
            continue
        return [*stage.needs(), *stage.wants()]
    return []


def check_needs(stage: Stage, facts: Mapping[str, Any]) -> None:
    """Refuse a dataset, given by its manifest, that lacks a needed column or field. Raises UserError."""
    for reference in stage.needs():
        column, _, field = reference.partition(".")
        known = facts["columns"].get(column)
        where = f"dataset {facts['name']}: stage {stage.name} needs {reference}"
        if known is None and column in facts.get("stale", {}):
            raise UserError(f"{where}: column {column} is out of date, its parents have changed; {_remedy(column)}")
        if known is None:
            raise UserError(f"{where}: column {column} is missing; {_remedy(column)}")
        if late := behind(facts, column):
            raise UserError(f"{where}: {late}; {TO_CATCH_UP}")
        if field not in known["fields"]:
            there = ", ".join(f"{column}.{name}" for name in known["fields"])
            raise UserError(f"{where}: there is no such field; column {column} has {there}")


def _remedy(column: str) -> str:
    if column in STAGES_OF:
        return f"run `semiocity {STAGES_OF[column]} jobs/{STAGES_OF[column]}.toml` first"
    return "run the job that makes it first"


def parents_of(stage: Stage) -> list[str]:
    """Columns that the stage reads, sorted."""
    return sorted({reference.partition(".")[0] for reference in stage.needs()})


def revision(stage: Stage, parents: Mapping[str, str]) -> str:
    """Short hash of everything that decides the column's bytes; `parents` are column → revision."""
    return digest(
        {
            "stage": stage.name,
            "version": stage.version,
            "settings": stage.settings(),
            "model": stage.model_revision(),
            "execution": stage.execution(),
            "parents": dict(parents),
        }
    )
