"""The dataset of these tests: 40 rows of the generated city in 4 shards, and columns made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import column_folder, merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.shard import Head, ShardPath, ShardWriter

ATTACK = """<img src=x onerror="window.hacked=1"> "><script>window.hacked=1</script> & 'quoted' {{7*7}}"""
MOODS = ("calm", "<b onmouseover='window.hacked=1'>busy</b>", None)
FAILED_FOR_GOOD, FAILED_FOR_NOW = 5, 17
"""Rows of the dataset, counted over its shards, that are tombstones of the column `seen`."""
PLACES = ("near the market", "by the river", "ÉCOLE in the square", "under two tall trees")

Row = tuple[dict[str, tuple[str, bytes]], dict[str, Any]]


def make_town(folder: Path) -> Path:
    source = {"kind": "city", "size": [64, 32], "train": 30, "val": 10, "seed": 3}
    recipe = Recipe.model_validate({"name": "town", "source": source, "shard_rows": 10, "license": "CC0-1.0"})
    plan = make_plan(recipe, folder)
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(folder, "base", plan.revision)
    fields = {"text": "txt", "boxes": "boxes.json", "rle": "mask.json", "notes": "json"}
    scalars = {"short": "str", "score": "float", "mood": "str", "sharp": "bool", "views": "int"}
    add_column(folder, "seen", fields, scalars, seen)
    return folder


def seen(number: int, key: str) -> Row | tuple[str, str]:
    """A row of the column `seen`, or the kind and reason of its tombstone."""
    if number == FAILED_FOR_GOOD:
        return "permanent", f"cannot be read: {ATTACK}"
    if number == FAILED_FOR_NOW:
        return "retry", "out of memory"
    text = ATTACK if number == 1 else f"Street number {number} {PLACES[number % 4]}"
    boxes = [
        {"label": ATTACK, "bbox": [8, 4, 20, 12], "attributes": {}},
        {"label": "car", "bbox": [40.5, 10, 12, 8], "attributes": {"occluded": True}},
    ]
    fields = {
        "text": ("txt", f"{text}\nand a second line, only in the full text".encode()),
        "boxes": ("boxes.json", json.dumps(boxes).encode()),
        "rle": ("mask.json", json.dumps(two_masks()).encode()),
        "notes": ("json", json.dumps({"said": ATTACK}).encode()),
    }
    scalars = {
        "short": text,
        "score": math.nan if number == 2 else None if number == 3 else number / 40,
        "mood": MOODS[number % 3],
        "sharp": number % 2 == 0,
        "views": 2**53 + number,
    }
    return fields, scalars


def two_masks() -> dict[str, Any]:
    """A large mask with a small one inside it, as `stages.masks` writes them."""
    import numpy as np

    from semiocity.stages.masks import encode

    large, small = np.zeros((2, 32, 64), bool)
    large[4:28, 10:50] = True
    small[10:16, 20:31] = True
    masks = encode(np.stack([small, large]), [{"score": 0.5}, {"score": 0.9}])
    return {"size": list(masks.size), "masks": masks.items}


def add_column(
    dataset: Path,
    name: str,
    fields: dict[str, str],
    scalars: dict[str, Any],
    make: Callable[[int, str], Any],
    revision: str = "aaaaaaaaaa",
) -> None:
    """Add a column made from base, as a stage's job would."""
    base = Dataset.open(dataset)
    number = 0
    for shard, entry in enumerate(base.shard_entries("base")):
        head = Head(
            column=name,
            revision=revision,
            shard=shard,
            parents={"base": {"revision": base.column("base").revision, "sha256": entry["sha256"]}},
            stage={"name": "look", "version": 2, "args": {"prompt": "what is seen?"}},
            model="0123456789abcdef",
            execution={"device": "cpu", "dtype": "float32", "batch": 1},
            fields=fields,
            scalars=scalars,
        )
        with ShardWriter(ShardPath(column_folder(dataset, name, revision), shard), head) as writer:
            for key in base.reader("base", shard).keys:
                made = make(number, key)
                if isinstance(made[0], str):
                    writer.tombstone(key, *made)
                else:
                    writer.add(key, *made)
                number += 1
            writer.publish()
    merge(dataset, name, revision)
