"""Where rows come from: one file a source. README.md in semiocity/data says how to add one. Login-node code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from semiocity.data.sources import (
    ade20k,
    bdd100k,
    camvid,
    cityscapes,
    cmp_facade,
    coco_stuff,
    folder,
    generated,
    huggingface,
    imaginary_cities,
    openimages,
    sidewalk,
    table,
    webdataset,
)
from semiocity.data.sources.ade20k import Ade20kSource
from semiocity.data.sources.base import Class, Entry, Raw, Rejection
from semiocity.data.sources.bdd100k import Bdd100kSource
from semiocity.data.sources.camvid import CamvidSource
from semiocity.data.sources.cityscapes import CityscapesSource
from semiocity.data.sources.cmp_facade import CmpFacadeSource
from semiocity.data.sources.coco_stuff import CocoStuffSource
from semiocity.data.sources.folder import FolderSource
from semiocity.data.sources.generated import CitySource
from semiocity.data.sources.huggingface import HuggingfaceSource
from semiocity.data.sources.imaginary_cities import ImaginaryCitiesSource
from semiocity.data.sources.openimages import OpenImagesSource
from semiocity.data.sources.sidewalk import SidewalkSource
from semiocity.data.sources.table import TableSource
from semiocity.data.sources.webdataset import WebdatasetSource

if TYPE_CHECKING:
    from typing import Literal

Source = Annotated[
    CitySource
    | CamvidSource
    | FolderSource
    | CityscapesSource
    | Bdd100kSource
    | CmpFacadeSource
    | Ade20kSource
    | CocoStuffSource
    | OpenImagesSource
    | ImaginaryCitiesSource
    | SidewalkSource
    | TableSource
    | WebdatasetSource
    | HuggingfaceSource,
    Field(discriminator="kind"),
]

SOURCES: dict[str, ModuleType] = {
    "city": generated,
    "camvid": camvid,
    "folder": folder,
    "cityscapes": cityscapes,
    "bdd100k": bdd100k,
    "cmp_facade": cmp_facade,
    "ade20k": ade20k,
    "coco_stuff": coco_stuff,
    "openimages": openimages,
    "imaginary_cities": imaginary_cities,
    "sidewalk": sidewalk,
    "table": table,
    "webdataset": webdataset,
    "huggingface": huggingface,
}


def defaults_of(kind: Any) -> dict[str, Any]:
    """What a source knows of its rows: promised fields, classes, ids to ignore. Empty for a kind that is none."""
    module = SOURCES.get(kind)
    if module is None:
        return {}
    known: dict[str, Any] = {"fields": module.FIELDS}
    if module.CLASSES is not None:
        known["classes"] = tuple(Class(*item)._asdict() for item in module.CLASSES)
        known["label"] = {"ignore_ids": getattr(module, "IGNORE_IDS", ())}
        if module.IGNORE_ID is not None:
            known["ignore_id"] = module.IGNORE_ID
    return known


@contextmanager
def loading(source: Any, entries: Sequence[Entry]) -> Iterator[Callable[[Entry], Raw]]:
    """A function that gives the payloads of each of a shard's `entries`; it may raise `images.Rejected`.

    A module names its own loader as LOADER = "module:function", imported by packing only (it may use numpy and
    pyarrow): `load(source, entry)`, or a context manager `opened(source, entries)` where rows are better read together.
    Without one, each of the entry's files is a field.
    """
    module, _, name = getattr(SOURCES[source.kind], "LOADER", "semiocity.data.sources.plain:load").partition(":")
    load = getattr(import_module(module), name)
    if name == "opened":
        with load(source, entries) as made:
            yield made
    else:
        yield partial(load, source)


def reads_files(kind: Any) -> bool:
    """Whether a source reads files below a `root`, rather than making its rows."""
    return kind in SOURCES and SOURCES[kind] is not generated


def version_of(kind: str) -> int:
    """Raised by a source whenever it would give other rows for the same files."""
    return SOURCES[kind].VERSION


def scalars_of(source: Any) -> dict[str, Literal["int", "float", "str", "bool"]]:
    """Scalars that a source adds to every row, with their types; `license` and `origin` (an address, a name) always.

    A module names its own in SCALARS; those that the recipe declares are in the source's `scalar_types`.
    """
    own = getattr(SOURCES[source.kind], "SCALARS", {})
    return {"license": "str", "origin": "str", **own, **getattr(source, "scalar_types", {})}


def entries_of(source: Any) -> Iterator[Entry | Rejection]:
    """Every row and every rejected file of a source."""
    return SOURCES[source.kind].entries(source)
