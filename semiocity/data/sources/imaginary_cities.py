"""Imaginary Cities: generated pictures with the prompts and settings that made them, in a CSV or JSON file.

The synthetic half of the Semiocity thesis' data (P. Suarez Fuenmayor; Flux.1 dev in ComfyUI). `prompts.csv` (or .json,
.jsonl) has a line a picture; pictures lie in `images/`, label maps, where there are some, in `annotations/` under the
same names. Columns are known by their usual names (COLUMNS); `source.columns` names others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from semiocity.data import csv_files
from semiocity.data.keys import printable
from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.files import check_root, split_name
from semiocity.data.sources.json_stream import elements
from semiocity.data.sources.paired import paired
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image", "caption")
CLASSES = None
IGNORE_ID = None
SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {
    # Text: ComfyUI's seeds go up to 2⁶⁴ - 1, more than a 64-bit integer with a sign holds.
    "seed": "str",
    "steps": "int",
    "guidance": "float",
    "model": "str",
    "sampler": "str",
    "negative_prompt": "str",
}

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "file_name", "filename", "file", "image_file", "image_path", "filepath", "path", "image_name"),
    "prompt": ("prompt", "positive_prompt", "caption", "text"),
    "seed": ("seed", "noise_seed"),
    "steps": ("steps", "num_inference_steps", "sampling_steps"),
    "guidance": ("guidance", "guidance_scale", "cfg", "cfg_scale"),
    "model": ("model", "checkpoint", "model_name", "ckpt_name"),
    "sampler": ("sampler", "sampler_name", "scheduler"),
    "negative_prompt": ("negative_prompt", "negative"),
    "license": ("license", "licence"),
    "origin": ("origin", "url", "source_url"),
}
"""What is read → names of its column, compared in lower case with _ for spaces; the first there counts."""

TABLES = ("prompts", "metadata")
LAYOUT = (
    "images/, a prompts.csv, prompts.json or prompts.jsonl with a line a picture, and annotations/ with label maps if "
    "there are any"
)


class ImaginaryCitiesSource(FileSource):
    """Generated pictures with their prompts."""

    kind: Literal["imaginary_cities"] = "imaginary_cities"
    prompts: str | None = None
    """The table, relative to root. None: prompts or metadata .csv, .json or .jsonl, or else the only .csv in root, or
    else the only .json or .jsonl."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What is read → its column (or JSON key), where COLUMNS does not know it."""
    images: str = "images"
    """Folder below root with the pictures."""
    annotations: str = "annotations"
    """Folder below root with label maps, at the pictures' names with .png; it need not be there."""

    @field_validator("columns")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        if strange := [name for name in value if name not in COLUMNS]:
            raise ValueError(f"{strange[0]} is nothing that is read; known are {', '.join(COLUMNS)}")
        return value

    @field_validator("prompts", "images", "annotations")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith("/") or ".." in value.split("/")):
            raise ValueError("a path below source.root is expected")
        return None if value is None else value.strip("/")


def entries(source: ImaginaryCitiesSource) -> Iterator[Entry | Rejection]:
    """One entry a picture. The table is held in memory. Raises UserError when it or the folder of pictures is missing,
    when it lacks a column of pictures or prompts, or when a number in it is none."""
    root = check_root(source.root)
    if not (root / source.images).is_dir():
        raise UserError(f"source.images: {root} has no {source.images}/; expected is {LAYOUT}")
    made = _table(source, root)
    for item in paired(source, source.images, "train", {"label": (source.annotations, ".png")}):
        if isinstance(item, Rejection):
            yield item
            continue
        facts = made.get(item.id[len(source.images) + 1 :]) or made.get(item.id) or made.get(item.id.rpartition("/")[2])
        if facts is None:
            yield Rejection(item.name, "not_listed", "the table of prompts has no line for it")
            continue
        scalars = dict(facts)
        prompt = scalars.pop("prompt")
        yield item.with_caption(prompt)._replace(scalars=scalars)


def _table(source: ImaginaryCitiesSource, root: Path) -> dict[str, dict[str, Any]]:
    """Name of the picture without extension, as the table has it → what is known of it."""
    path = root / source.prompts if source.prompts else _find(root)
    if not path.is_file():
        raise UserError(f"source.prompts: {path}: no such file; expected is {LAYOUT}")
    table: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}: row {number}"
        if not isinstance(line, dict):
            raise UserError(f"{where}: an object with the picture's name and its prompt is expected")
        facts = _facts(source, line, where)
        name = split_name(facts.pop("image").replace("\\", "/").removeprefix("./"))[0]
        if table.setdefault(name, facts) != facts:
            raise UserError(f"{where}: {printable(name)} has another row that says something else")
    if not table:
        raise UserError(f"{path}: no rows; expected is {LAYOUT}")
    return table


def _find(root: Path) -> Path:
    kinds = (".csv", ".json", ".jsonl")
    named = [root / f"{name}{kind}" for name in TABLES for kind in kinds]
    there = [path for path in named if path.is_file()]
    if there:
        return there[0]
    for kind in kinds:
        found = sorted(path for path in root.glob(f"*{kind}") if path.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{root}: which file has the prompts, {names}? Say source.prompts = FILE")
    raise UserError(f"{root}: no file of prompts; expected is {LAYOUT}")


def _lines(path: Path) -> Iterator[Any]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            try:
                yield from csv_files.dict_reader(file)
            except csv_files.Error as error:
                raise UserError(f"{path}: no CSV: {error}") from None
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield json.loads(line.decode("utf-8-sig"))
                except ValueError as error:  # UnicodeDecodeError is one
                    raise UserError(f"{path}: line {number}: damaged JSON: {error}") from None
    else:
        for key, item in elements(path):
            # {"a.png": {"prompt": …}} is as usual as a list of objects; other keys may say what they like.
            if isinstance(item, dict):
                yield {"image": key, **item} if key.rpartition(".")[0] else item
            elif not key:
                yield item


def _facts(source: ImaginaryCitiesSource, line: dict[str, Any], where: str) -> dict[str, Any]:
    """image, prompt and the scalars of one line; the empty ones left out."""
    by_name = {str(name).strip().lower().replace(" ", "_"): value for name, value in line.items()}
    facts: dict[str, Any] = {}
    for name, usual in COLUMNS.items():
        given = source.columns.get(name)
        if given is not None and given not in line:
            raise UserError(f"source.columns.{name}: {where} has no {given}; there are {', '.join(map(str, line))}")
        value = line[given] if given is not None else next((by_name[n] for n in usual if n in by_name), None)
        if value is not None and str(value).strip():
            facts[name] = _typed(name, value, where)
    for name in ("image", "prompt"):
        if name not in facts:
            raise UserError(
                f"{where}: no {name}; its column may be called {', '.join(COLUMNS[name])}, or named in "
                f"source.columns.{name}. There are {', '.join(map(str, line))}"
            )
    return facts


def _typed(name: str, value: Any, where: str) -> Any:
    try:
        match SCALARS.get(name):
            case "int":
                return int(value)
            case "float":
                return float(value)
            case _:
                return str(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {name} is {value!r}; a number is expected") from None
