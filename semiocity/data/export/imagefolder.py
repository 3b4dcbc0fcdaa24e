"""Plain folders of pictures with metadata.jsonl (or .csv), as `datasets` and diffusers' training scripts read them.

    OUT/train/00000012/KEY.jpg                     the pictures of a shard
    OUT/train/00000012/conditioning/KEY.png        with --conditioning, for ControlNets
    OUT/train/metadata.jsonl                       a line a picture: file_name, text, scalars

With --conditioning the columns are `image`, `conditioning_image` and `text`: that is what `image_file_name` and
`conditioning_image_file_name` become in `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.export.base import Exporter, Options, Parts, Written, part_stem
from semiocity.data.export.selection import Payload, Selected, Selection, map_ids
from semiocity.data.manifest import BASE
from semiocity.errors import UserError
from semiocity.files import canonical, replacing

CAPTIONS = ("caption.text", f"{BASE}.caption")
CONDITIONING = "conditioning_image"


class ImageFolder(Exporter):
    uses: ClassVar[tuple[str, ...]] = ("conditioning", "metadata")

    def __init__(self, selection: Selection, options: Options) -> None:
        if options.metadata not in ("jsonl", "csv"):
            raise UserError(f"--metadata {options.metadata}: one of jsonl, csv")
        if options.conditioning is not None:
            selection = _with_conditioning(selection, options.conditioning)
        super().__init__(selection, options)
        image = selection.first(f"{BASE}.image")
        if image is None:
            raise UserError("--to imagefolder needs the field base.image")
        self._image = image
        self._texts = {name: "text" if ref in CAPTIONS else name for name, ref in selection.fields.items()}
        for name in set(selection.fields) - {image, CONDITIONING}:
            if selection.kind(name) in ("image", "binary"):
                raise UserError(
                    f"--fields: {name} ({selection.fields[name]}) is neither text nor a number. A second picture a row "
                    "is --conditioning COLUMN.FIELD"
                )
        self._palette = selection.dataset.palette

    @classmethod
    def default_fields(cls, dataset: Dataset) -> list[str]:
        return [f"{BASE}.image", *[reference for reference in CAPTIONS if dataset.has(reference)][:1]]

    def write(self, shard: int, folder: Path) -> Written:
        lines: dict[str, list[str]] = {}
        for row in self.selection.rows(shard):
            line = self._line(row, folder / row.split / f"{shard:08d}", f"{shard:08d}")
            if line is not None:
                lines.setdefault(row.split, []).append(canonical(line))
        paths = []
        for split, found in sorted(lines.items()):
            piece = f"{part_stem(shard)}.{split}.jsonl"
            (folder / piece).parent.mkdir(parents=True, exist_ok=True)
            (folder / piece).write_text("".join(line + "\n" for line in found), encoding="ascii")
            paths += [piece, f"{split}/{shard:08d}"]
        return Written(paths, {"pieces": {split: f"{part_stem(shard)}.{split}.jsonl" for split in sorted(lines)}})

    def finish(self, parts: Parts, out: Path) -> list[str]:
        names = []
        for split in parts.splits():
            name = f"{split}/metadata.{self.options.metadata}"
            with replacing(out / name) as file:
                if self.options.metadata == "csv":
                    file.write(_csv(self._columns()))
                for part in parts:
                    if split in part.facts["pieces"]:
                        self._append(file, out / part.facts["pieces"][split])
            names.append(name)
        return names

    def _append(self, file: IO[bytes], piece: Path) -> None:
        with piece.open("rb") as lines:
            for line in lines:
                if self.options.metadata == "csv":
                    found = json.loads(line)
                    file.write(_csv([found[name] for name in self._columns()]))
                else:
                    file.write(line)

    def _columns(self) -> list[str]:
        others = [self._texts[name] for name in self.selection.fields if name not in (self._image, CONDITIONING)]
        pair = ["image_file_name", f"{CONDITIONING}_file_name"]
        return [*(pair if self.options.conditioning else ["file_name"]), *others, "key"]

    def _line(self, row: Selected, folder: Path, place: str) -> dict[str, Any] | None:
        """Write the row's pictures; its line, or None where it lacks the second picture."""
        values = dict(row.values)
        image = values.pop(self._image)
        line: dict[str, Any] = {"key": row.key}
        pictures = {"": image}
        if self.options.conditioning:
            second = values.pop(CONDITIONING)
            if second is None:
                return None
            pictures["conditioning/"] = self._colored(second)
        for (where, picture), column in zip(pictures.items(), self._columns(), strict=False):
            name = f"{where}{row.key}.{picture.ext.rpartition('.')[2]}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture.data)
            line[column] = f"{place}/{name}"
        for name, value in values.items():
            line[self._texts[name]] = value.data.decode() if isinstance(value, Payload) else value
        return line

    def _colored(self, picture: Payload) -> Payload:
        """Label maps in the classes' colours, as ControlNets are shown them; other pictures as they are."""
        if picture.ext != "label.png":
            return picture
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[: len(self._palette)] = self._palette
        sink = io.BytesIO()
        Image.fromarray(colors[map_ids(picture.data)]).save(sink, "PNG")
        return Payload("png", sink.getvalue())


def _with_conditioning(selection: Selection, reference: str) -> Selection:
    selection.dataset.require([reference])
    fields = {name: ref for name, ref in selection.fields.items() if ref != reference} | {CONDITIONING: reference}
    wider = selection.with_fields(fields)
    if not wider.is_field(CONDITIONING) or wider.kind(CONDITIONING) != "image":
        raise UserError(f"--conditioning {reference}: not a picture")
    return wider


def _csv(values: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return text.getvalue().encode()
