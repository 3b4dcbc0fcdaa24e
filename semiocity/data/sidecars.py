"""Captions and masks that were made elsewhere, as they lie on disk: text files, tables, COCO JSON, PNG.

Every input becomes `Item`s: what it is called there, and its value as JSON. `imports.py` joins them with rows.
Login-node code.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import file_digest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from semiocity.data import csv_files
from semiocity.data.keys import printable, to_text
from semiocity.errors import UserError

Kind = Literal["captions", "masks"]

NAMES = ("key", "file", "file_name", "filename", "image", "path", "id", "__key__")
"""Columns of a table that may say which row is meant; the first that is there does."""
TEXTS = ("text", "caption", "prompt")
MASKS = "masks"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Item(NamedTuple):
    """One input. Names are text from `keys.to_text`."""

    name: str
    """What the row is called there: a key, or a file with or without folders and extension."""
    folder: str
    """For a picture of a folder: the folder's name, which may be the row's; else empty."""
    value: dict[str, Any]
    """captions: {"text"}. masks: {"size", "masks": […]} or {"png", "root", "sha256"}."""
    origin: str
    """Where it comes from, such as captions.csv:17; part of the column's bytes."""


class Columns(NamedTuple):
    """Which columns of tables are read; None takes the first that is known."""

    name: str | None = None
    text: str | None = None


def read(inputs: list[Path], kind: Kind, columns: Columns) -> Iterator[Item]:
    """Every item of files and folders, in a fixed order. Raises UserError that names file and line."""
    for root, path in enumerate(inputs):
        if path.is_dir():
            yield from _folder(path, kind, root)
        elif path.is_file():
            yield from _file(path, path.name, path.parent, kind, columns, root)
        else:
            raise UserError(f"{path}: no such file or folder")


def kind_of(inputs: list[Path]) -> Kind:
    """What the inputs hold, judged by their names; COCO files by what is in them. Raises UserError when in doubt."""
    found = {kind for path in inputs if (kind := _kind_of(path)) is not None}
    if len(found) != 1:
        raise UserError(f"{inputs[0]}: captions or masks? Say --kind captions or --kind masks")
    return found.pop()


def _kind_of(path: Path) -> Kind | None:
    if path.is_dir():
        suffixes = {Path(name).suffix for _, names in _walk(path) for name in names}
        if ".txt" in suffixes:
            return "captions"
        return "masks" if ".png" in suffixes else None
    match path.suffix.lower():
        case ".png":
            return "masks"
        case ".json":
            content = _json(path)
            first = (content.get("annotations") or [{}])[0] if isinstance(content, dict) else {}
            return "captions" if isinstance(content, list) or "caption" in first else "masks"
        case ".jsonl" | ".ndjson":
            with path.open("rb") as lines:
                return "masks" if f'"{MASKS}"'.encode() in lines.readline() else "captions"
    return "captions"


# ---------------------------------------------------------------- files


def _folder(folder: Path, kind: Kind, root: int) -> Iterator[Item]:
    """Text files or PNGs below a folder; other files (pictures beside their captions) are not looked at."""
    wanted = {"captions": ".txt", "masks": ".png"}[kind]
    count = 0
    for where, names in _walk(folder):
        for name in names:
            if name.lower().endswith(wanted):
                count += 1
                yield from _file(
                    folder / where / name, f"{where}/{name}".removeprefix("./"), folder, kind, Columns(), root
                )
    if not count:
        raise UserError(f"{folder}: no {wanted} files below it")


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to `folder`, names of its files), sorted; hidden ones are left out."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield os.path.relpath(where, folder), sorted(name for name in names if not name.startswith("."))


def _file(path: Path, name: str, base: Path, kind: Kind, columns: Columns, root: int) -> Iterator[Item]:
    name = to_text(os.fsencode(name))
    suffix = path.suffix.lower()
    if suffix == ".txt" and kind == "captions":
        yield Item(name, "", {"text": _text(path)}, printable(name))
    elif suffix == ".png" and kind == "masks":
        with path.open("rb") as file:
            value = {"png": name, "root": root, "sha256": file_digest(file, "sha256").hexdigest()}
        yield Item(name, os.path.dirname(name), value, printable(name))  # noqa: PTH120 - not a path on this machine
    elif suffix == ".json":
        yield from _json_file(path, kind, columns)
    elif suffix in TABLES:
        yield from _table(path, kind, _rows(path, suffix), columns)
    else:
        wanted = "txt, csv, tsv, jsonl, parquet, json" if kind == "captions" else "png, jsonl, json (COCO)"
        raise UserError(f"{path}: cannot be read as {kind}; known are {wanted}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


# ---------------------------------------------------------------- tables


def _rows(path: Path, suffix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, row)"""
    match suffix:
        case ".parquet":
            yield from _parquet_rows(path)
        case ".csv" | ".tsv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv_files.dict_reader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
                try:
                    for cells in reader:
                        yield reader.line_num, dict(cells)
                except (csv_files.Error, UnicodeDecodeError) as error:
                    raise UserError(f"{path}: line {reader.reader.line_num}: {error}") from None
        case _:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        row = json.loads(line) if line.strip() else None
                    except (json.JSONDecodeError, UnicodeDecodeError) as error:
                        raise UserError(f"{path}: line {number}: not valid JSON: {error}") from None
                    if row is not None:
                        yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: install semiocity[data]") from None
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable as parquet: {error}") from None


def _table(path: Path, kind: Kind, rows: Iterable[tuple[int, Any]], columns: Columns) -> Iterator[Item]:
    for number, row in rows:
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a row with named values")
        name = _cell(row, columns.name, NAMES, where, "--key")
        if kind == "captions":
            value: dict[str, Any] = {"text": _cell(row, columns.text, TEXTS, where, "--text").strip()}
        else:
            value = _own_masks(row, where)
        yield Item(name, "", value, f"{printable(path.name)}:{number}")


def _cell(row: dict[str, Any], wanted: str | None, known: tuple[str, ...], where: str, option: str) -> str:
    name = wanted if wanted is not None else next((name for name in known if name in row), None)
    if name is None or name not in row:
        there = ", ".join(str(column) for column in row)
        looked = wanted or ", ".join(known)
        raise UserError(f"{where}: no column {looked}; there are {there}. {option} names the right one")
    if not isinstance(row[name], (str, int)) or row[name] == "":
        raise UserError(f"{where}: {name} is {row[name]!r}, not a text")
    return str(row[name])


def _own_masks(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row as our own column `mask` has it: {"size": [h, w], "masks": [{"counts", …}]}."""
    size, masks = row.get("size"), row.get(MASKS)
    if not (_is_size(size) and isinstance(masks, list) and all(isinstance(mask, dict) for mask in masks)):
        raise UserError(f'{where}: masks are {{"size": [height, width], "masks": [{{"counts": …}}, …]}}')
    return {"size": size, "masks": [_mask(mask, mask.get("segmentation", mask.get("counts")), where) for mask in masks]}


# ---------------------------------------------------------------- COCO


def _json_file(path: Path, kind: Kind, columns: Columns) -> Iterator[Item]:
    content = _json(path)
    if isinstance(content, list):
        return _table(path, kind, enumerate(content, start=1), columns)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise UserError(f"{path}: neither COCO (images, annotations) nor a list of rows")
    return _coco(path, kind, content)


def _coco(path: Path, kind: Kind, content: dict[str, Any]) -> Iterator[Item]:
    """One item an image; an image without annotations has no masks, or no caption. Held in memory as a whole."""
    try:
        found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            found[annotation["image_id"]].append(annotation)
        categories = {item["id"]: item["name"] for item in content.get("categories", ())}
        if missing := sorted(set(found) - {image["id"] for image in content["images"]}, key=str):
            raise UserError(f"{path}: annotations of image {missing[0]}, which is not among the images")
        for image in content["images"]:
            where = f"{path}: image {image['id']}"
            own = sorted(found[image["id"]], key=lambda annotation: annotation["id"])
            origin = f"{printable(path.name)}:{image['id']}"
            if kind == "captions":
                if own:  # of several, the first
                    yield Item(image["file_name"], "", {"text": own[0]["caption"].strip()}, origin)
                continue
            masks = []
            for annotation in own:
                more = {"category": categories.get(annotation.get("category_id"))}
                masks.append(_mask({**annotation, **more}, annotation["segmentation"], where))
            value = {"size": [image["height"], image["width"]], "masks": masks}
            yield Item(image["file_name"], "", value, origin)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not as COCO has it: {type(error).__name__}: {error}") from None


KEPT = ("category", "score", "stability", "point", "iscrowd", "id", "color")
"""What is kept of a mask beside its shape, where it is known."""


def _mask(facts: dict[str, Any], shape: Any, where: str) -> dict[str, Any]:
    """{"shape", …}: run-lengths as text or list, or polygons as a list of lists."""
    if isinstance(shape, dict):
        shape = shape.get("counts")
    if not isinstance(shape, (str, list)) or not shape:
        raise UserError(f"{where}: a mask has neither counts nor polygons")
    kept = {
        name: facts[name]
        for name in KEPT
        if facts.get(name) is not None and not (name == "iscrowd" and not facts[name])
    }
    return {"shape": shape, **kept}


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
