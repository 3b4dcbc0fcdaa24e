"""What the pages are told, as JSON: the dataset, lines of the gallery, everything about one row."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from semiocity.data.columns import Dataset
from semiocity.data.manifest import BASE, TO_CATCH_UP, behind, read_column_manifest
from semiocity.data.shard import ShardError
from semiocity.data.sources.reasons import REASONS
from semiocity.errors import UserError
from semiocity.ui.browse.building import shards_of
from semiocity.ui.browse.index import readable
from semiocity.ui.browse.library import Shelf

KINDS = {
    "label.png": "label",
    "instance.png": "instance",
    "mask.json": "masks",
    "boxes.json": "boxes",
    "txt": "text",
}
"""Member extension → how a field is shown; other pictures are laid over the image as they are, JSON is listed."""

TEXT_MOST = 100_000
"""Bytes of a text or JSON field that the page is given; the whole is behind its link."""
REJECTED_MOST = 200


def kind_of(ext: str) -> str:
    """How a field with a member extension is shown."""
    last = ext.split("|")[0].rpartition(".")[2]
    return KINDS.get(ext) or {"png": "picture", "jpg": "picture", "json": "json"}.get(last, "file")


def dataset_facts(shelf: Shelf) -> dict[str, Any]:
    """What is the same for every row: name, classes, columns with where they come from, facets."""
    dataset, index = shelf.dataset, shelf.index
    facts = dataset.facts
    return {
        "name": dataset.name,
        "version": shelf.version,
        "rows": len(index),
        "of": dataset.rows(),
        "digest": dataset.digest,
        "size": dataset.image_size,
        "note": facts["recipe"].get("note") or "",
        "license": facts["recipe"].get("license") or "",
        "source": facts["recipe"]["source"],
        "splits": dataset.splits,
        "ignore_id": dataset.ignore_id,
        "classes": [{"name": spec.name, "color": list(spec.color)} for spec in dataset.classes],
        "shares": {str(i): source for i, source in index.classes.items()},
        "scalars": index.scalars,
        "columns": {name: column_facts(dataset, name) for name in dataset.columns},
        "stale": facts.get("stale", {}),
        "files_seen": facts.get("files_seen"),
        "rejected": [{"reason": r, "rows": n, "means": REASONS.get(r, "")} for r, n in facts["rejected"].items()],
        "choices": {name: [_word(v) for v in values] for name, values in index.choices.items()},
        "ranges": index.ranges,
        "texts": index.texts,
        "captions": caption_columns(shelf),
        "layers": gallery_layers(dataset),
        "views": index.views.listed() if index.views else [],
    }


def column_facts(dataset: Dataset, name: str) -> dict[str, Any]:
    """A column: revision, fields with how they are shown, and what made it."""
    column = dataset.column(name)
    made = read_column_manifest(dataset.path, name, column.revision)
    return {
        "revision": column.revision,
        "digest": column.digest,
        "fields": {field: {"ext": ext, "kind": kind_of(ext)} for field, ext in column.fields.items()},
        "scalars": column.scalars,
        "tombstones": column.tombstones,
        "stage": made.get("stage"),
        "model": made.get("model"),
        "executions": made.get("executions", []),
        "parents": made.get("parents", {}),
    }


def gallery_layers(dataset: Dataset) -> list[dict[str, str]]:
    """What thumbnails can show: (name in the URL, words for people)."""
    layers = [{"name": f"{BASE}.image", "title": "image"}]
    for name, column in dataset.columns.items():
        for field, ext in column.fields.items():
            title = field if name == BASE else f"{name}.{field}"
            kind = kind_of(ext)
            if kind in ("label", "instance"):
                layers += [
                    {"name": f"{name}.{field}", "title": title},
                    {"name": f"{name}.{field}+", "title": f"{title} over image"},
                ]
            elif kind == "masks":
                layers.append({"name": f"{name}.{field}+", "title": f"{title} over image"})
            elif kind == "picture" and (name, field) != (BASE, "image"):
                layers.append({"name": f"{name}.{field}", "title": title})
    return layers


def caption_columns(shelf: Shelf) -> list[str]:
    """Scalars that a tile may show as its caption, the likeliest first."""

    def likely(name: str) -> tuple[bool, bool]:
        return ("caption" not in name, name.partition(".")[2] not in ("short", "text", "caption"))

    own = (f"{BASE}.license", f"{BASE}.origin", f"{BASE}.split")
    return sorted((name for name in shelf.index.texts if name not in own), key=likely)


def lines(shelf: Shelf, rows: list[int]) -> list[dict[str, Any]]:
    """What a tile shows: key, split, caption, and the columns in which the row failed."""
    columns = shelf.dataset.columns
    captions = caption_columns(shelf)[:2]
    wanted = ["key", f"{BASE}.width", f"{BASE}.height", f"{BASE}.split", *captions]
    failed = {name: f"{name}.tombstone" for name, c in columns.items() if any(c.tombstones.values())}
    found = []
    for row in rows:
        values = shelf.index.read(row, [*wanted, *failed.values()])
        found.append(
            {
                "row": row,
                "key": values["key"],
                "split": values[f"{BASE}.split"],
                "width": values[f"{BASE}.width"],
                "height": values[f"{BASE}.height"],
                "caption": next((values[name] for name in captions if values[name]), None),
                "failed": {name: values[field] for name, field in failed.items() if values[field]},
            }
        )
    return found


def row_facts(shelf: Shelf, row: int) -> dict[str, Any]:
    """Everything about one row. A column whose shard cannot be read says so instead of failing the others."""
    place = shelf.index.read(row, ["shard", "row", "key"])
    return {
        "row": row,
        "key": place["key"],
        "shard": place["shard"],
        "place": place["row"],
        "columns": {name: _column_of(shelf, row, name, place["shard"]) for name in shelf.dataset.columns},
    }


def _column_of(shelf: Shelf, row: int, name: str, shard: int) -> dict[str, Any]:
    column = shelf.dataset.column(name)
    scalars = [f"{name}.{scalar}" for scalar in column.scalars]
    values = shelf.index.read(row, [f"{name}.tombstone", f"{name}.reason", *scalars])
    kind = values[f"{name}.tombstone"]
    found: dict[str, Any] = {
        "tombstone": {"kind": kind, "reason": values[f"{name}.reason"]} if kind else None,
        "scalars": {scalar: readable(values[f"{name}.{scalar}"]) for scalar in column.scalars},
        "fields": {},
    }
    if lacking := behind(shelf.dataset.facts, name) if shard >= shards_of(shelf.dataset, name) else None:
        return found | {"error": f"{lacking}; {TO_CATCH_UP}"}
    try:
        place = shelf.index.read(row, ["row"])["row"]
        reader = shelf.reader(name, shard)
        for field, ext in column.fields.items():
            if not reader.has(field) or (length := reader.column(f"{field}.length")[place]) is None:
                continue
            entry = {"ext": reader.column(f"{field}.ext")[place], "kind": kind_of(ext), "bytes": length}
            if entry["kind"] in ("text", "json", "boxes"):
                entry |= _text(shelf.payload(row, name, field) or b"", entry["kind"])
            found["fields"][field] = entry
        entry = shelf.dataset.shard_entries(name)[shard]
        found["sha256"] = entry["sha256"]
        found["parents"] = entry.get("parents", {})
    except ShardError as error:
        found["error"] = str(error)
    return found


def _text(data: bytes, kind: str) -> dict[str, Any]:
    if len(data) > TEXT_MOST and kind != "boxes":
        return {"text": data[:TEXT_MOST].decode("utf-8", "replace"), "cut": True}
    if kind == "text":
        return {"text": data.decode("utf-8", "replace")}
    try:
        return {"value": json.loads(data, parse_constant=str)}
    except (ValueError, RecursionError):
        return {"text": data[:TEXT_MOST].decode("utf-8", "replace"), "damaged": True}


def rejected(shelf: Shelf) -> dict[str, Any]:
    """The first files that were not packed, with reasons."""
    column = shelf.dataset.column(BASE)
    path = column.folder / "rejected.jsonl"
    try:
        with path.open(encoding="ascii") as file:
            found = [json.loads(line) for line in islice(file, REJECTED_MOST)]
    except FileNotFoundError:
        found = []
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return {"files": found, "most": REJECTED_MOST}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
