"""What only the tars know of a row: which classes its label map shows, and the texts that are no scalars."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from semiocity.data.columns import Column
from semiocity.data.manifest import BASE, ShardPath
from semiocity.data.shard import ShardReader


class Contents(NamedTuple):
    """Of one shard."""

    shares: np.ndarray
    """float32 [rows, classes]: share of the picture's pixels, 0 to 1; NaN for a row without a label map."""
    texts: list[str]
    """Every .txt field of a row, a newline between them."""


def read(columns: Iterable[Column], shard: int, rows: int, classes: int) -> Contents:
    """Read a shard's texts and, unless `classes` is 0, its label maps. A map that cannot be decoded counts as none:
    `verify` names it."""
    shares = np.full((rows, classes), np.nan, np.float32)
    texts: list[list[str]] = [[] for _ in range(rows)]
    for column in columns:
        wanted = [name for name, ext in column.fields.items() if ext == "txt"]
        maps = classes and column.name == BASE and "label" in column.fields
        if not wanted and not maps:
            continue
        with ShardReader(ShardPath(column.folder, shard)) as reader:
            for row in range(rows):
                for name in wanted:
                    data = reader.read(row, name)
                    if data is not None:
                        texts[row].append(data.decode("utf-8", "replace"))
                if maps and (data := reader.read(row, "label")) is not None:
                    shares[row] = class_shares(data, classes)
    return Contents(shares, ["\n".join(found) for found in texts])


def class_shares(data: bytes, classes: int) -> np.ndarray:
    """Share of the pixels of each class in a label map (PNG of ids), float32 [classes]; NaN when it is damaged."""
    try:
        ids = np.asarray(Image.open(io.BytesIO(data)))
    except (OSError, ValueError, SyntaxError):
        return np.full(classes, np.nan, np.float32)
    if ids.dtype != np.uint8:
        return np.full(classes, np.nan, np.float32)
    return (np.bincount(ids.ravel(), minlength=256)[:classes] / ids.size).astype(np.float32)
