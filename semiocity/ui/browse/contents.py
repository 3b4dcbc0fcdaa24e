"""What only the tars know of a row: which classes its label map shows, and the texts that are no scalars."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.manifest import BASE, ShardPath
from semiocity.data.shard import ShardReader


class Contents(NamedTuple):
    """Of one shard."""

    shares: np.ndarray
    """float32 [rows, classes]: share of the picture's pixels, 0 to 1; NaN for a row without a label map."""
    texts: list[str]
    """Every .txt field of a row, a newline between them."""


def read(dataset: Dataset, shard: int, rows: int) -> Contents:
    """Read a shard's label maps and texts. A label map that cannot be decoded counts as none: `verify` names it."""
    shares = np.full((rows, len(dataset.classes)), np.nan, np.float32)
    texts: list[list[str]] = [[] for _ in range(rows)]
    for column in dataset.columns.values():
        wanted = [name for name, ext in column.fields.items() if ext == "txt"]
        maps = dataset.classes and column.name == BASE and "label" in column.fields
        if not wanted and not maps:
            continue
        with ShardReader(ShardPath(column.folder, shard)) as reader:
            for row in range(rows):
                for name in wanted:
                    data = reader.read(row, name)
                    if data is not None:
                        texts[row].append(data.decode("utf-8", "replace"))
                if maps and (data := reader.read(row, "label")) is not None:
                    shares[row] = class_shares(data, len(dataset.classes))
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
