"""Open Images V7: a folder of pictures ImageID.jpg with the dataset's CSV tables.

A. Kuznetsova et al., "The Open Images Dataset V4", IJCV 128, 2020; https://storage.googleapis.com/openimages/web.
Pictures and tables may lie anywhere below root: tables are known by their headers, so that both the official names and
FiftyOne's folders are read. A picture is a row when it shows one of the wanted classes: by a box, or by a label that a
person has verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field

from semiocity.data.sources.base import Entry, FileSource, Rejection, name_list
from semiocity.data.sources.files import check_root, walk
from semiocity.data.sources.openimages_tables import Buckets, Line, Sieve, find_tables, read_classes, read_table
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image",)
CLASSES = None
IGNORE_ID = None
SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {"author": "str", "title": "str", "labels": "str"}

URBAN = name_list("""
    Building, House, Skyscraper, Tower, Office building, Convenience store, Tree house, Castle, Lighthouse, Door,
    Window, Stairs, Porch, Fountain, Sculpture, Bronze sculpture, Bench, Billboard, Street light, Traffic light,
    Traffic sign, Stop sign, Parking meter, Fire hydrant, Waste container, Car, Taxi, Limousine, Van, Truck, Bus,
    Ambulance, Train, Motorcycle, Bicycle,
    Architecture, City, Town, Street, Road, Neighbourhood, Downtown, Metropolis, Metropolitan area, Urban area,
    Residential area, Suburb, Human settlement, Town square, Plaza, Alley, Sidewalk, Cityscape, Skyline, Facade,
    Apartment, Condominium, Tower block, Mixed-use, Landmark, Bridge, Arch, Infrastructure, Pedestrian crossing,
    Lane, Public space, Commercial building, Brutalist architecture, Urban design
""")
"""The classes wanted by default, by their display names: first those that have boxes, then those of whole pictures.
What the tables do not describe is left out."""

SUBSETS = {"train": "train", "validation": "val", "test": "test"}
ATTRIBUTES = {
    "IsOccluded": "occluded",
    "IsTruncated": "truncated",
    "IsGroupOf": "group_of",
    "IsDepiction": "depiction",
    "IsInside": "inside",
}
KNOWN = {"0": False, "1": True}

LAYOUT = (
    "Open Images V7: pictures ImageID.jpg and, from its download page, image ids "
    "(*-images-with-labels-with-rotation.csv or image_ids_and_rotation.csv), class descriptions, and boxes "
    "(*-annotations-bbox.csv) or labels (*-annotations-human-imagelabels*.csv), anywhere below root"
)


class OpenImagesSource(FileSource):
    """Pictures of Open Images that show certain classes."""

    kind: Literal["openimages"] = "openimages"
    classes: tuple[str, ...] | None = None
    """Display names of the wanted classes, such as Building; None takes URBAN, the empty list any picture."""
    min_confidence: float = Field(0.5, ge=0, le=1)
    """A label or box counts from this confidence on. People's are 1 (or 0: not there), machines' between."""
    machine_labels: bool = False
    """Whether labels that machines gave count too, where their tables are there."""
    only_matching: bool = False
    """Whether only boxes and labels of the wanted classes are kept, rather than all of a picture that shows one."""
    rotate: bool = True
    """Turn pictures and boxes upright by the column Rotation (2.6 % of the pictures need it)."""


def entries(source: OpenImagesSource) -> Iterator[Entry | Rejection]:
    """One entry a picture of the wanted classes; the other pictures are rejected.

    The tables stream through files in the temporary folder, of the size of their lines about pictures that are there;
    memory holds 16 MB and about 1/256 of that at a time. Raises UserError when tables are missing or damaged, or a
    class does not exist.
    """
    root = check_root(source.root)
    tables = find_tables(root, source.link_roots)
    _check(root, tables)
    names = dict(pair for table in tables["classes"] for pair in read_classes(root / table))
    wanted = _wanted(source, names)
    with TemporaryDirectory(prefix="semiocity-openimages-") as scratch, Buckets(Path(scratch)) as buckets:
        there = Sieve()
        for found in walk(root, also=source.link_roots):
            if found.is_picture:
                if found.problem:
                    yield found.problem
                    continue
                id = found.stem.rpartition("/")[2]
                there.add(id)
                buckets.add(id, "pictures", [found.stem, found.name, found.size])
        for kind, read in (("images", _image), ("boxes", _box), ("labels", _label)):
            for path in [root / table for table in tables[kind]]:
                for line in read_table(path, there):
                    buckets.add(line["ImageID"], kind, _fact(read, line, path))
        for _, facts in buckets.images():
            for stem, name, size in facts.get("pictures", ()):
                yield _row(source, Entry(stem, {"image": name}, {"image": size}, "train"), facts, names, wanted)


def _check(root: Path, tables: dict[str, list[str]]) -> None:
    lacks = [kind for kind in ("images", "classes") if not tables[kind]]
    if lacks or not (tables["boxes"] or tables["labels"]):
        what = {"images": "image ids", "classes": "class descriptions"}.get((lacks or [""])[0], "boxes or labels")
        raise UserError(f"source.root: {root} has no table of {what}; expected is {LAYOUT}")


def _wanted(source: OpenImagesSource, names: dict[str, str]) -> set[str] | None:
    """LabelNames of the wanted classes; None for any picture."""
    if source.classes == ():
        return None
    by_name: dict[str, list[str]] = {}
    for label, name in names.items():
        by_name.setdefault(name.lower(), []).append(label)
    for name in source.classes or ():
        if name.lower() not in by_name:
            near = get_close_matches(name, names.values(), n=3)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise UserError(f"source.classes: the class descriptions have no {name}{hint}")
    return {label for name in source.classes or URBAN for label in by_name.get(name.lower(), ())}


def _fact(read: Any, line: Line, path: Path) -> list[Any]:
    try:
        fact: list[Any] = read(line)
        return fact
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: ImageID {line['ImageID']}: {error!r} is not as in Open Images") from None


def _image(line: Line) -> list[Any]:
    rotation = line.get("Rotation", "")
    # nan: the original was gone from Flickr when rotations were collected.
    turn = 0 if rotation in ("", "nan") else int(float(rotation))
    if turn not in (0, 90, 180, 270):
        raise ValueError(f"Rotation {rotation}")
    texts = [line.get(name) or None for name in ("License", "OriginalURL", "Author", "Title")]
    return [SUBSETS[line["Subset"]], turn, *texts]


def _box(line: Line) -> list[Any]:
    left, right, top, bottom = (float(line[name]) for name in ("XMin", "XMax", "YMin", "YMax"))
    attributes = {name: KNOWN[line[column]] for column, name in ATTRIBUTES.items() if line.get(column) in KNOWN}
    bbox = [left, top, round(right - left, 9), round(bottom - top, 9)]
    return [line["LabelName"], float(line.get("Confidence") or 1), bbox, attributes]


def _label(line: Line) -> list[Any]:
    return [line["LabelName"], float(line["Confidence"]), line["Source"] == "machine"]


def _row(
    source: OpenImagesSource,
    entry: Entry,
    facts: dict[str, list[list[Any]]],
    names: dict[str, str],
    wanted: set[str] | None,
) -> Entry | Rejection:
    if "images" not in facts:
        return Rejection(entry.name, "not_listed", "no line in the tables of image ids")
    split, turn, license, url, author, title = facts["images"][0]
    boxes = [box for box in facts.get("boxes", ()) if box[1] >= source.min_confidence]
    shown = {
        label
        for label, confidence, machine in facts.get("labels", ())
        if confidence >= source.min_confidence and (source.machine_labels or not machine)
    }
    if wanted is not None and not wanted & (shown | {box[0] for box in boxes}):
        return Rejection(entry.name, "class_unwanted", "none of source.classes")
    if wanted is not None and source.only_matching:
        boxes = [box for box in boxes if box[0] in wanted]
        shown &= wanted
    if "boxes" in facts:  # of pictures without any, nobody has said what they show
        named = [{"label": names.get(b[0], b[0]), "bbox": b[2], "attributes": b[3]} for b in boxes]
        entry = entry.with_boxes(named, relative=True)
    if source.rotate and turn:
        entry = entry._replace(extra={**entry.extra, "rotation": turn})
    scalars = {
        "author": author,
        "title": title,
        "labels": "; ".join(sorted(names.get(label, label) for label in shown)) or None,
        **{name: value for name, value in (("license", license), ("origin", url)) if value is not None},
    }
    return entry._replace(split=split, scalars=scalars)
