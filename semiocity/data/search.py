"""Rows that a filter selects, from the indexes alone: no tar is opened."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semiocity.data import filter as filters
from semiocity.data.columns import Dataset
from semiocity.data.manifest import BASE
from semiocity.data.rows import Index
from semiocity.data.selection import refuse_behind
from semiocity.errors import UserError

READERS = 8
"""Shards whose indexes are read at the same time: on a network file system most of the time is waiting."""


class Hit(NamedTuple):
    """A row that was found."""

    key: str
    shard: int
    row: int
    """Place in the shard."""
    values: dict[str, Any]
    """The scalars that were asked for."""


def search(path: Path, expression: str, show: Sequence[str] = (), where: str = "filter") -> Iterator[Hit]:
    """Rows of a dataset that the expression is true of, in order of shard and key, as they are found.

    `show` names further scalars whose values are wanted. Raises UserError for a wrong expression or name at once.
    """
    dataset = Dataset.open(path)
    known = filters.scalars_of(dataset.facts["columns"])
    checked = filters.parse(expression, known, where)
    shown = {name: _named(name, known) for name in show}
    refuse_behind(dataset.facts, {*checked.reads, *(column for column, _ in shown.values())}, path)

    def look(shard: int) -> list[Hit]:
        index = Index(dataset, shard)
        tables = {column: index.load(column, names) for column, names in checked.reads.items()}
        rows = np.flatnonzero(np.asarray(checked.mask(tables)))
        if not len(rows):
            return []
        keys = index.array(f"{BASE}.key").take(rows).to_pylist()
        values = {name: index.load(c, [s]).column(s).take(rows).to_pylist() for name, (c, s) in shown.items()}
        return [
            Hit(key, shard, int(row), {name: found[i] for name, found in values.items()})
            for i, (key, row) in enumerate(zip(keys, rows))
        ]

    return _in_order(look, dataset.shards)


def _in_order(look: Any, shards: int) -> Iterator[Hit]:
    """What `look` finds in each shard, in order; a few shards are looked at ahead."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="search") as pool:
        todo = iter(range(shards))
        ahead = deque(pool.submit(look, shard) for shard in islice(todo, 2 * READERS))
        try:
            while ahead:
                found = ahead.popleft().result()
                ahead.extend(pool.submit(look, shard) for shard in islice(todo, 1))
                yield from found
        finally:
            for waiting in ahead:
                waiting.cancel()


def _named(name: str, known: filters.Scalars) -> tuple[str, str]:
    found = filters.resolve(name, known)
    if found is None:
        raise UserError(f"--columns: no scalar {name}; there are columns {', '.join(known)}")
    return found
