"""One row with everything that is known of it: values, sizes, and what made each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semiocity.data.columns import Dataset
from semiocity.data.find import find
from semiocity.data.keys import printable
from semiocity.data.manifest import BASE, read_column_manifest
from semiocity.data.shard import ShardError, ShardReader
from semiocity.files import canonical, write_atomic

Reads = Callable[[Mapping[str, Any]], Sequence[str]]

TEXTS = ("txt", "json")
LONGEST_TEXT = 4000
"""Bytes of a text field that are shown; `--save` gives all of it."""


def describe(path: Path, name: str, reads: Reads = lambda stage: []) -> dict[str, Any]:
    """Everything about a row as one JSON value. Raises UserError when there is no such row.

    A field that cannot be read is there with the reason under "damaged". `reads` tells the fields that a stage reads;
    where it does not know, all of the parents' fields are given as what a value was made from.
    """
    dataset = Dataset.open(path)
    place = find(dataset, name)
    columns = {}
    for column in sorted(dataset.columns, key=lambda column: (column != BASE, column)):
        if place.shard < len(dataset.shard_entries(column)):
            columns[column] = _column(dataset, column, place.shard, place.row)
    for facts in columns.values():
        known = reads(facts["stage"])
        for parent, made_from in facts["parents"].items():
            made_from["fields"] = {
                f"{parent}.{field}": {"sha256": item.get("sha256"), "crc32": item["crc32"]}
                for field, item in columns.get(parent, {}).get("fields", {}).items()
                if not known or f"{parent}.{field}" in known
            }
    return {
        "dataset": dataset.name,
        "key": place.key,
        "shard": place.shard,
        "row": place.row,
        "source": dataset.recipe["source"]["kind"],
        "columns": columns,
        "stale": dataset.facts["stale"],
    }


def save(path: Path, name: str, folder: Path) -> list[Path]:
    """Write a row's payloads as files, KEY.COLUMN.FIELD.EXT. Raises UserError when one is damaged."""
    dataset = Dataset.open(path)
    place = find(dataset, name)
    written = []
    for column, known in dataset.columns.items():
        if place.shard >= len(dataset.shard_entries(column)):
            continue
        reader = dataset.reader(column, place.shard)
        for field in known.fields:
            payload = reader.read(place.row, field)
            if payload is not None:
                extension = reader.column(f"{field}.ext")[place.row].rpartition(".")[2]
                target = folder / f"{place.key}.{column}.{field}.{extension}"
                write_atomic(target, payload)
                written.append(target)
    return written


def _column(dataset: Dataset, column: str, shard: int, row: int) -> dict[str, Any]:
    made = dataset.column(column)
    manifest = read_column_manifest(dataset.path, column, made.revision)
    entry = dataset.shard_entries(column)[shard]
    reader = dataset.reader(column, shard)
    dead = reader.tombstoned(row)
    return {
        "revision": made.revision,
        "stage": manifest["stage"],
        "model": manifest["model"],
        "execution": entry["execution"],
        "parents": {name: dict(parent) for name, parent in entry["parents"].items()},
        "tombstone": None if dead is None else {"kind": dead[0], "reason": dead[1]},
        "fields": {field: item for field in made.fields if (item := _field(reader, row, field)) is not None},
        "scalars": reader.scalars(row),
        "shard_sha256": entry["sha256"],
    }


def _field(reader: ShardReader, row: int, field: str) -> dict[str, Any] | None:
    length = reader.column(f"{field}.length")[row]
    if length is None:
        return None
    extension = reader.column(f"{field}.ext")[row]
    item = {"type": extension, "bytes": length, "crc32": f"{reader.column(f'{field}.crc32')[row]:08x}"}
    try:
        payload = reader.read(row, field) or b""
    except ShardError as error:
        return {**item, "damaged": str(error)}
    item["sha256"] = hashlib.sha256(payload).hexdigest()
    if extension.rpartition(".")[2] in TEXTS:
        item["text"] = payload[:LONGEST_TEXT].decode("utf-8", "replace")
        item["cut"] = len(payload) > LONGEST_TEXT
    return item


def damaged(facts: dict[str, Any]) -> bool:
    """Whether a field could not be read."""
    return any("damaged" in item for column in facts["columns"].values() for item in column["fields"].values())


def render(facts: dict[str, Any]) -> str:
    """The row as text for a person. Control characters are escaped: captions may hold anything."""
    lines = [f"{facts['key']}  (dataset {facts['dataset']}, shard {facts['shard']:08d}, row {facts['row']})"]
    for name, column in facts["columns"].items():
        lines.append(f"{name}  {column['revision']}")
        lines += [f"  {line}" for line in _lines(column)]
    if facts["stale"]:
        lines.append(f"out of date, not shown: {', '.join(facts['stale'])}; `semiocity columns` says why")
    return "\n".join(lines)


def _lines(column: dict[str, Any]) -> list[str]:
    stage = column["stage"]
    found = [f"made by {stage['name']} {stage['version']}" + (f", model {column['model']}" if column["model"] else "")]
    found += [f"  {name} = {_text(value)}" for name, value in stage["args"].items()]
    found.append("on " + ", ".join(f"{name} {_text(value)}" for name, value in column["execution"].items()))
    for parent, made_from in column["parents"].items():
        found.append(f"from {parent} {made_from['revision']}, shard sha256 {made_from['sha256'][:16]}…")
        for field, item in made_from["fields"].items():
            found.append(f"  {field}  sha256 {(item['sha256'] or 'unknown')[:16]}…  crc32 {item['crc32']}")
    if column["tombstone"]:
        found.append(f"FAILED ({column['tombstone']['kind']}): {printable(column['tombstone']['reason'])}")
    for field, item in column["fields"].items():
        found.append(f"{field}: {item['type']}, {item['bytes']} bytes, crc32 {item['crc32']}")
        if "damaged" in item:
            found.append(f"  DAMAGED: {item['damaged']}")
        if "text" in item:
            found += [f"  {printable(line)}" for line in item["text"].splitlines()]
            found += ["  …"] if item["cut"] else []
    shown = [name for name, item in column["fields"].items() if "text" in item]
    found += [f"{name} = {_text(v)}" for name, v in column["scalars"].items() if v is not None and name not in shown]
    return found


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else canonical(value)
