"""Where rows come from: one file a source. README.md in semiocity/data says how to add one. Login-node code."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from semiocity.data.sources import camvid, folder, generated
from semiocity.data.sources.base import Entry, Rejection
from semiocity.data.sources.camvid import CamvidSource
from semiocity.data.sources.folder import FolderSource
from semiocity.data.sources.generated import CitySource

if TYPE_CHECKING:
    from typing import Literal

Source = Annotated[CitySource | CamvidSource | FolderSource, Field(discriminator="kind")]

SOURCES: dict[str, ModuleType] = {"city": generated, "camvid": camvid, "folder": folder}


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


def reads_files(kind: Any) -> bool:
    """Whether a source reads files below a `root`, rather than making its rows."""
    return kind in SOURCES and SOURCES[kind] is not generated


def version_of(kind: str) -> int:
    """Raised by a source whenever it would give other rows for the same files."""
    return SOURCES[kind].VERSION


def scalars_of(kind: str) -> dict[str, Literal["int", "float", "str", "bool"]]:
    """Scalars that a source adds to every row, with their types."""
    return getattr(SOURCES[kind], "SCALARS", {})


def entries_of(source: CitySource | CamvidSource | FolderSource) -> Iterator[Entry | Rejection]:
    """Every row and every rejected file of a source."""
    return SOURCES[source.kind].entries(source)
