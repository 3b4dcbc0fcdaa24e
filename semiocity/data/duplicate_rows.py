"""From the indexes of shards to the arrays that clustering works on, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from semiocity.data.duplicates import Clusters, Rows, levels


class Part(NamedTuple):
    """A shard's rows, in their order; the arrays of `Rows`, some 150 bytes a row."""

    rows: Rows
    splits: pa.DictionaryArray
    """The split of each row, null where it has none."""


class Joined(NamedTuple):
    """The rows of all shards."""

    rows: Rows
    """Ordered by key, so that nothing depends on which shard a row is in."""
    order: np.ndarray
    """int64 [N]: where each of `rows` stands in the order of shards."""
    splits: list[str | None]
    """[N], in the order of shards"""
    starts: np.ndarray
    """int64 [shards + 1]: where each shard begins."""


def gather(table: pa.Table, split: str) -> Part:
    """What is kept of a shard's index, given with the columns `key`, `split` and those of the column `hash`."""

    def numbers(name: str, dtype: type) -> np.ndarray:
        return table.column(f"hash.{name}").to_numpy().astype(dtype, copy=False)

    colours = [numbers(name, np.float32) for name in ("red", "green", "blue", "deviation")]
    rows = Rows(
        keys=np.array(table.column("key").to_pylist(), dtype=np.bytes_),
        pixels=_bits(table.column("hash.pixels_sha256").to_pylist()),
        phash=numbers("phash", np.int64).view(np.uint64),
        gradients=numbers("gradients", np.int64).view(np.uint64),
        detail=numbers("detail", np.float32),
        colour=np.stack(colours, axis=1),
        area=numbers("width", np.int64) * numbers("height", np.int64),
        level=np.empty(len(table), dtype=np.int16),
    )
    return Part(rows, table.column(split).combine_chunks().dictionary_encode())


def join(parts: Sequence[Part], held_out: Sequence[str]) -> Joined:
    """The rows of all shards, given in the order of shards."""
    names = [field.name for field in fields(Rows)]
    arrays = {name: np.concatenate([getattr(part.rows, name) for part in parts]) for name in names}
    splits = [split for part in parts for split in _values(part.splits)]
    arrays["level"] = levels(splits, held_out)
    order = np.argsort(arrays["keys"], kind="stable")
    rows = Rows(**{name: array[order] for name, array in arrays.items()})
    return Joined(rows, order, splits, np.cumsum([0, *(len(part.rows) for part in parts)]))


def in_shards(found: Clusters, order: np.ndarray) -> Clusters:
    """Clusters of rows ordered by key, put into the order of shards; `representative` numbers rows in that order."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    moved = {field.name: getattr(found, field.name)[back] for field in fields(Clusters)}
    return replace(Clusters(**moved), representative=order[moved["representative"]])


def _values(splits: pa.DictionaryArray) -> list[str | None]:
    """One string a name, not one a row."""
    names = splits.dictionary.to_pylist()
    return [None if i is None else names[i] for i in splits.indices.to_pylist()]


def _bits(digests: list[str]) -> np.ndarray:
    """The first 128 bits of digests in hex, uint64 [N, 2]."""
    raw = bytes.fromhex("".join(digest[:32] for digest in digests))
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)
