"""Where rows come from: one file a source. README.md in semiocity/data says how to add one. Login-node code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from semiocity.data.sources import camvid, folder, generated, huggingface, sidewalk, table, webdataset
from semiocity.data.sources.base import Entry, Raw, Rejection
from semiocity.data.sources.camvid import CamvidSource
from semiocity.data.sources.folder import FolderSource
from semiocity.data.sources.generated import CitySource
from semiocity.data.sources.huggingface import HuggingfaceSource
from semiocity.data.sources.sidewalk import SidewalkSource
from semiocity.data.sources.table import TableSource
from semiocity.data.sources.webdataset import WebdatasetSource

if TYPE_CHECKING:
    from typing import Literal

Source = Annotated[
    CitySource | CamvidSource | FolderSource | SidewalkSource | TableSource | WebdatasetSource | HuggingfaceSource,
    Field(discriminator="kind"),
]

SOURCES: dict[str, ModuleType] = {
    "city": generated,
    "camvid": camvid,
    "folder": folder,
    "sidewalk": sidewalk,
    "table": table,
    "webdataset": webdataset,
    "huggingface": huggingface,
}


def defaults_of(kind: Any) -> dict[str, Any]:
    """What a source knows of its rows: promised fields, classes, ignore id. Empty for a kind that does not exist."""
    module = SOURCES.get(kind)
    if module is None:
        return {}
    known: dict[str, Any] = {"fields": module.FIELDS}
    if module.CLASSES is not None:
        known["classes"] = tuple({"name": name, "color": color} for name, color in module.CLASSES)
        if module.IGNORE_ID is not None:
            known["ignore_id"] = module.IGNORE_ID
    return known


def loader_of(kind: str) -> Callable[[Any, Entry], Raw]:
    """`load(source, entry)`, which gives a row's payloads when it is packed; it may raise `images.Rejected`.

    A module names its own as LOADER = "module:function", imported by packing only (it may use numpy and pyarrow);
    without one, each of the entry's files is a field.
    """
    module, _, name = getattr(SOURCES[kind], "LOADER", "semiocity.data.sources.plain:load").partition(":")
    load: Callable[[Any, Entry], Raw] = getattr(import_module(module), name)
    return load


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
