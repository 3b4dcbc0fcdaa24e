"""CMP Facade Database: `base/NAME.jpg` with `base/NAME.png` (labels) and `base/NAME.xml` (boxes); extended alike.

R. Tyleček, R. Šára, "Spatial Pattern Templates for Recognition of Objects with Regular Structure", GCPR 2013. 378 and
228 rectified facades. Label maps are palette pictures that hold the classes' ids 1 to 12; colours are their palette's.
There is no official split; `shards/cmp_facade.toml` publishes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from semiocity.data.sources.base import Entry, FileSource, Raw, Rejection, class_table, each_once
from semiocity.data.sources.paired import expect, paired

VERSION = 1
FIELDS = ("image", "label")
CLASSES = class_table("""
     1    0   0 170   -  background
     2    0   0 255   -  facade
     3    0  85 255   -  window
     4    0 170 255   -  door
     5    0 255 255   -  cornice
     6   85 255 170   -  sill
     7  170 255  85   -  balcony
     8  255 255   0   -  blind
     9  255 170   0   -  deco
    10  255  85   0   -  molding
    11  255   0   0   -  pillar
    12  170   0   0   -  shop
""")
IGNORE_ID = 255
SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {"part": "str"}
LOADER = "semiocity.data.sources.cmp_facade:load"

LAYOUT = (
    "the CMP Facade Database as its zip files unpack: base/cmp_b0001.jpg, .png, .xml and extended/cmp_x0001.jpg, .png, "
    ".xml"
)


class CmpFacadeSource(FileSource):
    """CMP Facade, 12 classes; root holds base and extended."""

    kind: Literal["cmp_facade"] = "cmp_facade"
    parts: Annotated[tuple[Literal["base", "extended"], ...], AfterValidator(each_once)] = ("base", "extended")
    """base: whole facades. extended: more irregular ones, and parts of facades."""


def entries(source: CmpFacadeSource) -> Iterator[Entry | Rejection]:
    """One entry a picture, all in the split train. Raises UserError when a folder is missing."""
    expect(source, source.parts, LAYOUT)
    for part in source.parts:
        parallel = {"label": (part, ".png"), "boxes": (part, ".xml")}
        for item in paired(source, part, "train", parallel, extensions=("jpg", "jpeg")):
            yield item._replace(scalars={"part": part}) if isinstance(item, Entry) else item


def load(source: CmpFacadeSource, entry: Entry) -> Raw:
    """The bytes of the entry's files; boxes as fractions of the picture."""
    from semiocity.data.sources.plain import read_field

    payloads: dict[str, Any] = {field: read_field(source, entry, field) for field in entry.files}
    if "boxes" in payloads:
        payloads["boxes"] = _boxes(payloads["boxes"])
    return Raw(**payloads, relative_boxes=True)


def _boxes(data: bytes) -> list[dict[str, Any]]:
    """Boxes of an XML file: a row of <object>, with no element around them, whose x goes down and y to the right."""
    from xml.etree import ElementTree

    from semiocity.data.images import Rejected

    boxes = []
    try:
        # Inside an element no document type, and so no entity, can be declared.
        for item in ElementTree.fromstring(b"<all>" + data + b"</all>").iter("object"):
            down = [float(x.text or "") for x in item.iterfind("points/x")]
            right = [float(y.text or "") for y in item.iterfind("points/y")]
            bbox = [min(right), min(down), max(right) - min(right), max(down) - min(down)]
            boxes.append({"label": (item.findtext("labelname") or "").strip(), "bbox": bbox, "attributes": {}})
    except (ElementTree.ParseError, ValueError) as error:
        raise Rejected("boxes_format", f"no <object> with <points> and <labelname>: {error}") from None
    return boxes
