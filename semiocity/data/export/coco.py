"""COCO: pictures, and JSON of annotations with run-length masks, as pycocotools and FiftyOne read it.

    coco      OUT/images/train/00000012/KEY.jpg, OUT/annotations/KIND_train.json
    fiftyone  OUT/train/data/00000012/KEY.jpg, OUT/train/labels.json, and further KINDs as OUT/train/KIND.json

KIND is `instances` (of the instance map; the category is the class that most pixels have), `masks` (of the column
`mask`, likewise where there is a label map), `boxes` (the source's own, without masks), `stuff` (one annotation a class
of the label map) and `captions`. Image ids are the rows' numbers in the export from 1; annotation ids count from 1 in
every file; category ids are class ids plus 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from semiocity.data.columns import Dataset
from semiocity.data.export import coco_annotations
from semiocity.data.export.base import Exporter, Options, Part, Parts, Written, part_stem
from semiocity.data.export.selection import Payload, Selected, Selection
from semiocity.data.manifest import BASE
from semiocity.errors import UserError
from semiocity.files import canonical, replacing

SOURCES = {
    "instances": (f"{BASE}.instance",),
    "masks": ("mask.rle",),
    "boxes": (f"{BASE}.boxes",),
    "stuff": (f"{BASE}.label",),
    "captions": ("caption.text", f"{BASE}.caption"),
}
"""Kind of annotation → the fields that it comes from."""

IMAGES = "images"
LABEL = "label"
"""Key of an annotation's class by name, until all names are known."""


class Coco(Exporter):
    def __init__(self, selection: Selection, options: Options) -> None:
        scalars = [f"{BASE}.{name}" for name in ("width", "height", "license", "origin")]
        fields = {**selection.fields, **{ref: ref for ref in scalars if selection.dataset.has(ref)}}
        super().__init__(selection.with_fields(fields), options)
        self._image = selection.first(f"{BASE}.image")
        if self._image is None:
            raise UserError("COCO needs the field base.image")
        found = {kind: selection.first(*references) for kind, references in SOURCES.items()}
        self._kinds = {kind: name for kind, name in found.items() if name is not None}
        known = {self._image, *self._kinds.values()}
        if surplus := sorted(set(selection.fields) - known):
            there = ", ".join(reference for references in SOURCES.values() for reference in references)
            raise UserError(f"--fields: COCO has no place for {surplus[0]}; it takes base.image and {there}")
        self._classes = [spec.name for spec in selection.dataset.classes] if "stuff" in self._kinds else []

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        wanted = [next((ref for ref in refs if dataset.has(ref)), None) for refs in SOURCES.values()]
        return [f"{BASE}.image", *(ref for ref in wanted if ref is not None)]

    def images_folder(self, split: str) -> str:
        """Where the pictures of a split lie, relative."""
        return f"images/{split}"

    def labels_file(self, split: str, kind: str) -> str:
        """Where the annotations of a kind lie, relative."""
        return f"annotations/{kind}_{split}.json"

    def write(self, shard: int, folder: Path) -> Written:
        pieces: dict[tuple[str, str], IO[str]] = {}
        paths: list[str] = []
        labels: set[str] = set()

        def note(split: str, kind: str, line: str) -> None:
            if (split, kind) not in pieces:
                path = _piece(shard, split, kind)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                pieces[split, kind] = (folder / path).open("x", encoding="ascii")
                paths.append(path)
            pieces[split, kind].write(line + "\n")

        try:
            for row in self.selection.rows(shard):
                note(row.split, IMAGES, canonical(self._write_image(row, shard, folder)))
                for kind in self._kinds:
                    for found in self._annotations(row, kind):
                        labels.update([found[LABEL]] if LABEL in found else [])
                        # Without its first brace: the id is put before it when all shards are known.
                        note(row.split, kind, canonical({**found, "image_id": row.number + 1})[1:])
        finally:
            for file in pieces.values():
                file.close()
        splits = sorted({split for split, _ in pieces})
        paths += [f"{self.images_folder(split)}/{shard:08d}" for split in splits]
        return Written(paths, {"pieces": sorted([split, kind] for split, kind in pieces), "labels": sorted(labels)})

    def finish(self, parts: Parts, out: Path) -> list[str]:
        names = []
        labels = sorted({label for part in parts for label in part.facts["labels"]})
        for split in parts.splits():
            licenses = self._licenses(parts, out, split)
            for kind in self._kinds:
                name = self.labels_file(split, kind)
                with replacing(out / name) as file:
                    self._write_labels(file, parts, out, split, kind, licenses, labels)
                names.append(name)
        return names

    def _write_image(self, row: Selected, shard: int, folder: Path) -> dict[str, Any]:
        picture: Payload = row.values[self._image or ""]
        name = f"{shard:08d}/{row.key}.{picture.ext}"
        path = folder / self.images_folder(row.split) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.data)
        image = {
            "id": row.number + 1,
            "file_name": name,
            "width": row.values[f"{BASE}.width"],
            "height": row.values[f"{BASE}.height"],
        }
        more = {"license": row.values.get(f"{BASE}.license"), "coco_url": row.values.get(f"{BASE}.origin")}
        return image | {field: value for field, value in more.items() if value is not None}

    def _annotations(self, row: Selected, kind: str) -> Iterator[dict[str, Any]]:
        data = {name: value.data for name, value in row.values.items() if isinstance(value, Payload)}
        own = data.get(self._kinds[kind])
        if own is None:
            return iter(())
        label = data.get(self._kinds.get("stuff", ""))
        match kind:
            case "captions":
                return iter([{"caption": own.decode()}])
            case "instances":
                return coco_annotations.of_instances(own, label, len(self._classes))
            case "masks":
                return coco_annotations.of_masks(own, label, len(self._classes))
            case "boxes":
                return coco_annotations.of_boxes(own)
            case _:
                return coco_annotations.of_stuff(own, len(self._classes))

    # ------------------------------------------------------------ what spans shards

    def _licenses(self, parts: Parts, out: Path, split: str) -> list[str]:
        found = {image["license"] for image in _images(parts, out, split) if "license" in image}
        return sorted(found)

    def _write_labels(
        self, file: IO[bytes], parts: Parts, out: Path, split: str, kind: str, licenses: list[str], labels: list[str]
    ) -> None:
        """One JSON object, written piece by piece: nobody holds the annotations of a whole dataset.

        Categories are the dataset's classes; of boxes, which have names of their own, these.
        """
        ids = {label: number for number, label in enumerate(labels, start=1)}
        categories = coco_annotations.categories(labels if kind == "boxes" else self._classes)
        recipe = self.selection.dataset.recipe
        numbers = {name: number for number, name in enumerate(licenses, start=1)}
        head = {
            "info": {"description": recipe["note"] or recipe["name"], "contributor": recipe["license"]},
            "licenses": [{"id": number, "name": name, "url": ""} for name, number in numbers.items()],
            **({} if kind == "captions" else {"categories": categories}),
        }
        file.write(canonical(head)[:-1].encode() + b',"images":[')
        for i, image in enumerate(_images(parts, out, split)):
            if "license" in image:
                image["license"] = numbers[image["license"]]
            file.write((b",\n" if i else b"\n") + canonical(image).encode())
        file.write(b'\n],"annotations":[')
        for number, line in enumerate(_lines(parts, out, split, kind), start=1):
            if kind == "boxes":
                found = json.loads(b"{" + line)
                found["category_id"] = ids[found.pop(LABEL)]
                line = canonical(found)[1:].encode()
            file.write((b",\n" if number > 1 else b"\n") + b'{"id":%d,' % number + line)
        file.write(b"\n]}\n")


class FiftyOne(Coco):
    """COCO in the places where `fiftyone.types.COCODetectionDataset` looks: one folder a split."""

    def images_folder(self, split: str) -> str:
        return f"{split}/data"

    def labels_file(self, split: str, kind: str) -> str:
        first = next((kind for kind in self._kinds if kind != "captions"), None)
        return f"{split}/{'labels' if kind == first else kind}.json"


def _piece(shard: int, split: str, kind: str) -> str:
    return f"{part_stem(shard)}.{split}.{kind}.jsonl"


def _lines(parts: Parts, out: Path, split: str, kind: str) -> Iterator[bytes]:
    for part in parts:
        if _has(part, split, kind):
            with (out / _piece(part.shard, split, kind)).open("rb") as lines:
                for line in lines:
                    yield line.rstrip(b"\n")


def _images(parts: Parts, out: Path, split: str) -> Iterator[dict[str, Any]]:
    for line in _lines(parts, out, split, IMAGES):
        yield json.loads(line)


def _has(part: Part, split: str, kind: str) -> bool:
    return [split, kind] in part.facts["pieces"]
