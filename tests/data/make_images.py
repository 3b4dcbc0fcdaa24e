"""Pictures and datasets for the tests, good and bad."""

from __future__ import annotations

import io
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import column_folder, merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import Plan, make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.shard import Head, ShardPath, ShardWriter
from semiocity.data.sources.base import Entry
from semiocity.data.sources.reasons import REASONS
from semiocity.data.verify import verify


def pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth picture with some detail, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    waves = [127 + 90 * np.sin(x / rng.uniform(5, 20) + y / rng.uniform(5, 20) + rng.uniform(0, 6)) for _ in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def jpeg(width: int = 48, height: int = 32, seed: int = 0, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels(width, height, seed)), "JPEG", quality=90, **options)


def png(width: int = 48, height: int = 32, seed: int = 0) -> bytes:
    return encoded(Image.fromarray(pixels(width, height, seed)), "PNG")


def label_png(width: int = 48, height: int = 32, ids: tuple[int, ...] = (0, 1, 2)) -> bytes:
    """A label map with vertical stripes of the ids."""
    stripes = np.array(ids, dtype=np.uint8)[np.arange(width) * len(ids) // width]
    return encoded(Image.fromarray(np.tile(stripes, (height, 1))), "PNG")


def with_alpha() -> bytes:
    rgba = np.dstack([pixels(48, 32), np.full((32, 48), 255, np.uint8)])
    rgba[:, :24, 3] = 0
    return encoded(Image.fromarray(rgba), "PNG")


def bomb(side: int = 20_000) -> bytes:
    """A PNG of a few bytes whose header promises side² pixels; its pixel data are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


CLASSES = [
    {"name": name, "color": color}
    for name, color in (("sky", (0, 0, 255)), ("road", (90, 90, 90)), ("car", (255, 0, 0)))
]


def city_recipe(**changes: Any) -> Recipe:
    source = {"kind": "city", "size": [32, 32], "train": 14, "val": 6, **changes.pop("source", {})}
    return Recipe.model_validate({"name": "town", "source": source, "shard_rows": 6, **changes})


def folder_recipe(root: Path, **changes: Any) -> Recipe:
    source = {"kind": "folder", "root": str(root), **changes.pop("source", {})}
    return Recipe.model_validate({"name": "pictures", "source": source, "shard_rows": 6, **changes})


def planned(plan: Plan, shard: int) -> list[Entry]:
    """The entries of a shard in which nothing was taken down."""
    return [row.entry for row in plan.rows(shard) if row.entry is not None]


def packed(recipe: Recipe, dataset: Path) -> tuple[Plan, Dataset]:
    """Plan (anew if need be), pack every shard in this process, merge, open."""
    plan = make_plan(recipe, dataset, anew=True)
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(dataset, "base", plan.revision)
    return plan, Dataset.open(dataset)


def add_column(dataset: Path, name: str = "word", failing: tuple[str, ...] = (), revision: str = "aaaaaaaaaa") -> None:
    """A column made from base: text and its length; rows whose key is in `failing` become tombstones."""
    base = Dataset.open(dataset)
    for shard, entry in enumerate(base.shard_entries("base")):
        head = Head(
            column=name,
            revision=revision,
            shard=shard,
            parents={"base": {"revision": base.column("base").revision, "sha256": entry["sha256"]}},
            stage={"name": "word", "version": 1, "args": {}},
            model=None,
            execution={"device": "cpu", "dtype": "float32", "batch": 1},
            fields={"text": "txt"},
            scalars={"letters": "int"},
        )
        with ShardWriter(ShardPath(column_folder(dataset, name, revision), shard), head) as writer:
            for key in base.reader("base", shard).keys:
                if key in failing:
                    writer.tombstone(key, "permanent", "cannot be read")
                else:
                    writer.add(key, {"text": ("txt", key.encode())}, {"letters": len(key)})
            writer.publish()
    merge(dataset, name, revision)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def dice() -> random.Random:
    """Random numbers from a seed that is printed, so that a failure can be repeated."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"random seed {seed}")
    return random.Random(seed)


def pack_folder(root: Path, out: Path, **changes: Any) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """Pack a folder, as `pack_rows` does."""
    return pack_rows(folder_recipe(root, **changes), out)


def pack_rows(recipe: Recipe, out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """Pack anything. Rows (fields, meta, key, scalars) by file or else id, and rejections (reason, detail) by id."""
    plan, dataset = packed(recipe, out)
    fields = [f"base.{name}" for name in dataset.column("base").fields]
    view = dataset.view(fields)
    rows = {}
    for i in range(len(view)):
        row = {name.removeprefix("base."): data for name, data in view.read(i).items()}
        meta = json.loads(row.pop("meta"))
        rows[meta["file"] or meta["id"]] = {**row, "meta": meta, "key": view.key(i), "scalars": view.scalars(i)}
    lines = (plan.folder / "rejected.jsonl").read_text().splitlines()
    rejected = {item["id"]: (item["reason"], item["detail"]) for item in map(json.loads, lines)}
    assert len(rows) + len(rejected) == plan.files_seen, "every file is packed or rejected"
    assert {reason for reason, _ in rejected.values()} <= set(REASONS)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rejected"] == dict(Counter(reason for reason, _ in rejected.values()))
    assert manifest["rows"] == len(rows)
    assert verify(out) == []
    return rows, rejected


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def decoded(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)))


_OPENED: list[list[str]] = []
"""Who listens to the files that are opened; filled once an audit hook is there, which stays for good."""


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Names of the files that Python opens in the block."""

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event == "open":
            for names in _OPENED[1:]:
                names.append(str(values[0]))

    if not _OPENED:
        _OPENED.append([])
        sys.addaudithook(hook)
    found: list[str] = []
    _OPENED.append(found)
    try:
        yield found
    finally:
        _OPENED.pop()
