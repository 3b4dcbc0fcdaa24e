"""Datasets made by hand for the tests of stages: any payload, good or bad, without going through the packer."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semiocity.data.lease import Owner
from semiocity.data.manifest import column_folder, merge, read_manifest
from semiocity.data.recipe import Recipe
from semiocity.data.shard import Head, ShardPath, ShardReader, ShardWriter
from semiocity.data.sources.city import CLASSES, scene
from semiocity.files import digest, write_json
from semiocity.stages.base import Stage, parents_of, revision
from semiocity.stages.runner import run_shards

STREET = CLASSES
FIELDS = {"image": "jpg|png", "label": "label.png", "instance": "instance.png"}


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def key_of(number: int) -> str:
    return f"{hashlib.sha256(str(number).encode()).hexdigest()[:10]}-{number:03d}"


def street_rows(count: int, size: int = 48) -> dict[str, dict[str, tuple[str, bytes]]]:
    """Key → fields of generated street scenes."""
    rows = {}
    for number in range(count):
        made = scene(5, number, size, size)
        rows[key_of(number)] = {
            "image": ("png", png(made.image)),
            "label": ("label.png", png(made.label)),
            "instance": ("instance.png", png(made.instance)),
        }
    return rows


def write_base(
    folder: Path,
    rows: Mapping[str, Mapping[str, tuple[str, bytes]]],
    shard_rows: int,
    classes: Sequence[str],
    ignore_id: int | None = None,
    splits: Mapping[str, str] | None = None,
) -> Path:
    """Write rows (key → fields) as the base column of a dataset; rows are of the split train but for `splits`, at dusk.

    A row without fields is a tombstone.
    """
    keys = sorted(rows)
    shards = [keys[start : start + shard_rows] for start in range(0, len(keys), shard_rows)]
    recipe = Recipe.model_validate(
        {
            "name": folder.name,
            "source": {"kind": "folder", "root": str(folder)},
            "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate(classes)],
            "ignore_id": ignore_id,
        }
    ).resolved()
    plan = {"recipe": recipe, "shards": len(shards), "rows": len(keys), "files_seen": len(keys)}
    made = digest(plan)
    write_json(folder / "plans" / made / "plan.json", plan)
    (folder / "plans" / made / "rejected.jsonl").touch()
    known = {name: ext for name, ext in FIELDS.items() if any(name in row for row in rows.values())}
    for number, members in enumerate(shards):
        head = Head(
            column="base",
            revision=made,
            shard=number,
            parents={},
            stage={"name": "test", "version": 1, "args": {}},
            model=None,
            execution={"device": "cpu", "dtype": "uint8", "batch": 1},
            fields=known,
            scalars={"split": "str", "time": "str"},
        )
        with ShardWriter(ShardPath(column_folder(folder, "base", made), number), head) as writer:
            for key in members:
                scalars = {"split": (splits or {}).get(key, "train"), "time": "dusk"}
                if rows[key]:
                    writer.add(key, rows[key], scalars)
                else:
                    writer.tombstone(key, "removed", "taken down", scalars)
            writer.publish()
    merge(folder, "base", made)
    return folder


def stage_revision(stage: Stage, dataset: Path) -> str:
    columns = read_manifest(dataset)["columns"]
    return revision(stage, {name: columns[name]["revision"] for name in parents_of(stage)})


def shards_of(dataset: Path) -> range:
    return range(read_manifest(dataset)["columns"]["base"]["shards"])


def run_stage(stage: Stage, dataset: Path, shards: Sequence[int] | None = None, **more: Any) -> Path:
    """Run a stage over a dataset to its end; returns the folder of the new column's revision."""
    made = stage_revision(stage, dataset)
    which = shards_of(dataset) if shards is None else shards
    assert run_shards(stage, dataset, stage.column, made, which, Owner.here(), **more)
    return column_folder(dataset, stage.column, made)


def read_column(folder: Path) -> dict[str, tuple[dict[str, bytes | None], dict[str, Any], tuple[str, str] | None]]:
    """Key → (fields, scalars, tombstone) of all shards of a column's revision."""
    found = {}
    for receipt in sorted(folder.glob("*/????????.json")):
        with ShardReader(ShardPath(folder, int(receipt.stem))) as reader:
            names = [name.removesuffix(".offset") for name in reader.table.column_names if name.endswith(".offset")]
            for i, key in enumerate(reader.keys):
                fields = {name: reader.read(i, name) for name in names}
                found[key] = (fields, reader.scalars(i), reader.tombstoned(i))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: name → bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
