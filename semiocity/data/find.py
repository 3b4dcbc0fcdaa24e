"""Finds rows by key, by the beginning of a key, or by the name that the picture had in its source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.data.columns import Dataset
from semiocity.data.keys import DIGITS, key_of, slug
from semiocity.data.manifest import BASE, ShardPath
from semiocity.data.rows import read_index
from semiocity.data.shard import ShardError
from semiocity.errors import UserError
from semiocity.files import read_json

KEY_BEGINS = re.compile(r"[0-9a-f]{3,30}(-[a-z0-9_-]*)?")

MOST = 20
"""Rows that are listed when a name fits several."""


class Place(NamedTuple):
    """Where a row is."""

    key: str
    shard: int
    row: int


def find(dataset: Dataset, name: str) -> Place:
    """The one row of this name. Raises UserError when there is none, or several: then their keys are listed."""
    for way in (_by_key, _by_path, _by_file):
        found = way(dataset, name)
        if len(found) == 1:
            return found[0]
        if found:
            shown = "\n  ".join(place.key for place in found[:MOST])
            more = f"\n  and {len(found) - MOST} more" if len(found) > MOST else ""
            raise UserError(f"{dataset.path}: {name!r} fits {len(found)} rows:\n  {shown}{more}")
    raise UserError(
        f"{dataset.path}: no row {name!r}: neither a key, nor the beginning of one (three hex digits or more), nor a "
        "file's name in the source. `semiocity search` finds rows by what is in them"
    )


def find_keys(dataset: Dataset, keys: Iterable[str]) -> dict[int, dict[str, int]]:
    """Shard → key → row of these whole keys; those that there are. Opens an index's statistics a few times a key, and
    each at most once."""
    known = cache(lambda shard: _first_key(dataset, shard))
    wanted = sorted(set(keys))
    found: dict[int, dict[str, int]] = {}
    for run in _runs(dataset):
        by_shard: dict[int, set[str]] = {}
        for key in wanted:
            by_shard.setdefault(_last_at_most(run, key, known), set()).add(key)
        for shard, some in by_shard.items():
            names = read_index(dataset, BASE, shard, ["key"])["key"].to_pylist()
            if rows := {key: row for row, key in enumerate(names) if key in some}:
                found[shard] = rows
    return dict(sorted(found.items()))


def _by_key(dataset: Dataset, name: str) -> list[Place]:
    return list(_beginning_with(dataset, name)) if KEY_BEGINS.fullmatch(name) else []


def _by_path(dataset: Dataset, name: str) -> list[Place]:
    """By the whole path in the source, with or without extension: its hash is the key."""
    path = PurePosixPath(name)
    found = {}
    for id in {str(path), str(path.with_suffix(""))} if path.name else ():
        for place in _beginning_with(dataset, key_of(id)[: DIGITS[0]]):
            if _names(dataset, place) & {name, id}:
                found[place.key] = place
    return [found[key] for key in sorted(found)]


def _by_file(dataset: Dataset, name: str) -> list[Place]:
    """By the file's name alone, or the end of its path: every key is looked at, then the rows with the same slug."""
    path = PurePosixPath(name)
    slugs = {slug(path.name), slug(path.stem)}
    found = []
    for shard in range(dataset.shards):
        keys = read_index(dataset, BASE, shard, ["key"])["key"].to_pylist()
        for row, key in enumerate(keys):
            if key.partition("-")[2] in slugs:
                place = Place(key, shard, row)
                if any(known == name or known.endswith("/" + name) for known in _names(dataset, place)):
                    found.append(place)
    return found


def _names(dataset: Dataset, place: Place) -> set[str]:
    """What a row is called in its source: id, file, and the file without its extension."""
    try:
        meta = json.loads(dataset.reader(BASE, place.shard).read(place.row, "meta") or b"{}")
    except (ShardError, ValueError):
        return set()
    names = {name for name in (meta.get("id"), meta.get("file")) if name}
    return names | {str(PurePosixPath(name).with_suffix("")) for name in names if PurePosixPath(name).name}


def _beginning_with(dataset: Dataset, start: str) -> Iterator[Place]:
    """Rows whose keys begin with `start`. Keys ascend through the shards that were planned together, so that a few
    indexes are opened, not all."""
    for run in _runs(dataset):
        shard = _last_at_most(run, start, lambda shard: _first_key(dataset, shard))
        while shard < run.stop:
            keys = read_index(dataset, BASE, shard, ["key"])["key"]
            for row in pc.indices_nonzero(pc.starts_with(keys, start)).to_pylist():
                yield Place(keys[row].as_py(), shard, row)
            if len(keys) and keys[-1].as_py()[: len(start)] > start:
                break
            shard += 1


def _runs(dataset: Dataset) -> list[range]:
    """Ranges of shards through which keys ascend: those of one planning."""
    try:
        plan = read_json(dataset.path / "plans" / dataset.column(BASE).revision / "plan.json")
        ends = [0]
        for part in plan["parts"]:
            ends.append(ends[-1] + len(part["offsets"]))
    except (FileNotFoundError, KeyError):
        return [range(shard, shard + 1) for shard in range(dataset.shards)]
    ends = [end for end in ends if end < dataset.shards] + [dataset.shards]
    return [range(*pair) for pair in pairwise(ends)]


def _last_at_most(run: range, start: str, first_key: Callable[[int], str | None]) -> int:
    """The last shard of a run whose first key is at most `start`, or the run's first shard."""
    low, high = run.start, run.stop - 1
    while low < high:
        middle = probe = (low + high + 1) // 2
        key = first_key(probe)
        while key is None and probe < high:  # a shard of which every row was rejected
            probe += 1
            key = first_key(probe)
        if key is not None and key <= start:
            low = probe
        else:
            high = middle - 1
    return low


def _first_key(dataset: Dataset, shard: int) -> str | None:
    """The smallest key of a shard, from the statistics in its index; None when it has no rows."""
    path = ShardPath(dataset.column(BASE).folder, shard).parquet
    try:
        facts = pq.read_metadata(path)
        if not facts.num_rows:
            return None
        found = facts.row_group(0).column(0).statistics
        return str(found.min) if found is not None and found.has_min_max else ""
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path}: index cannot be read ({error}); see `semiocity verify`") from None
