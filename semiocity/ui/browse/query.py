"""Which rows, in which order: the URL's parameters against the index.

q=words "a phrase" -not     every word is found in key or texts (any case, parts of words too)
in.NAME=VALUE               a choice; several of the same name are alternatives, an empty one is "no value"
min.NAME= max.NAME=         a range, both ends inside
with=CLASS without=CLASS    class ids; with: at least `share` of the picture (0: at all), without: not at all
view=NAME                   rows of a saved view
where=EXPRESSION            a filter as in views and `semiocity search`: docs/filters.md
sort=NAME or -NAME          a scalar, `name` (the readable part of the key); rows without a value come last
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semiocity.errors import UserError
from semiocity.ui.browse.index import NOTHING, Index

LONGEST = 2000
"""Characters of a search."""
WORDS = 32
KEPT = 64
"""Masks, results and orders that are kept, each a byte or four a row."""
NAME = "name"


class Word(NamedTuple):
    """Something that a row's texts must have, or must not have."""

    text: str
    wanted: bool


class Choice(NamedTuple):
    name: str
    values: tuple[str, ...]


class Range(NamedTuple):
    name: str
    low: float | int | None
    high: float | int | None


class Class(NamedTuple):
    """Whether a class is there with at least a share of the picture, or not at all."""

    id: int
    wanted: bool
    share: float


class Where(NamedTuple):
    """A filter expression, checked."""

    text: str


class Chosen(NamedTuple):
    """The rows of a saved view, as it was built."""

    view: str
    revision: str


Part = Word | Choice | Range | Class | Where | Chosen


@dataclass(frozen=True)
class Query:
    """Parts that must all hold, and an order."""

    parts: tuple[Part, ...] = ()
    sort: str = ""
    """A scalar's name, `name`, or nothing for the dataset's own order (mixed, by key)."""
    descending: bool = False


class Found(NamedTuple):
    """The answer to a query."""

    rows: np.ndarray
    """int32: rows of the index in the wanted order."""
    counts: dict[str, Any]
    """choices: NAME → rows a value and, last, without one; ranges: NAME → rows a bar; classes: rows a class. Of rows
    that fulfil the query but for its part about that very name."""


# ---------------------------------------------------------------- parsing


def parse(parameters: Mapping[str, list[str]], index: Index) -> Query:
    """A query from URL parameters; unknown ones are left to others. Raises UserError."""
    parts: list[Part] = [*_words(_last(parameters, "q"))]
    ranges: dict[str, list[float | int | None]] = {}
    for key, values in parameters.items():
        kind, _, name = key.partition(".")
        if kind == "in" and name:
            _known(name, index.choices, "choice")
            parts.append(Choice(name, tuple(sorted(set(values)))))
        elif kind in ("min", "max") and name and values[-1]:
            _known(name, index.ranges, "range")
            ranges.setdefault(name, [None, None])[kind == "max"] = _number(values[-1], key)
    parts += [Range(name, low, high) for name, (low, high) in ranges.items()]
    share = _last(parameters, "share")
    least = float(_number(share, "share")) if share else 0.0
    for key in ("with", "without"):
        parts += [
            Class(_class(value, index), key == "with", least if key == "with" else 0.0)
            for value in parameters.get(key, ())
        ]
    if view := _last(parameters, "view"):
        if index.views is None:
            raise UserError(f"view {view[:100]!r}: there are no views here")
        parts.append(Chosen(view, index.views.revision(view)))
    if where := _last(parameters, "where"):
        index.filter(where)
        parts.append(Where(where))
    sort = _last(parameters, "sort")
    by = sort.removeprefix("-")
    if by and by != NAME:
        _known(by, dict.fromkeys([*index.choices, *index.ranges, *index.classes.values()]), "sort")
    return Query(tuple(parts), by, sort.startswith("-"))


def _last(parameters: Mapping[str, list[str]], key: str) -> str:
    return parameters[key][-1].strip() if parameters.get(key) else ""


def _words(text: str) -> list[Word]:
    if len(text) > LONGEST:
        raise UserError(f"the search is longer than {LONGEST} characters")
    found = re.findall(r'(-?)"([^"]*)"?|(-?)(\S+)', text)
    words = [
        Word(" ".join((phrase or word).lower().split()), not (minus or other)) for minus, phrase, other, word in found
    ]
    words = [word for word in words if word.text]
    if len(words) > WORDS:
        raise UserError(f"the search has more than {WORDS} words")
    return words


def _known(name: str, names: Mapping[str, Any], what: str) -> None:
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
        raise UserError(f"{what} {name}: no such scalar; {hint}")


def _number(text: str, where: str) -> float | int:
    try:
        value: float | int = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is no number") from None
    if not math.isfinite(value):
        raise UserError(f"{where}: {text!r} is no finite number")
    return value


def _class(text: str, index: Index) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or int(text) not in index.classes:
        raise UserError(f"class {text!r}: there is no such class id in this index")
    return int(text)


# ---------------------------------------------------------------- answering


class Searcher:
    """Answers queries over one index; what was computed last is kept. Safe to use from several threads."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="search")

    def find(self, query: Query) -> Found:
        """Rows in order, and counts."""
        return self._keep(query, lambda: self._find(query))

    def _find(self, query: Query) -> Found:
        masks = [(part, self._keep(part, lambda part=part: self._mask(part))) for part in query.parts]
        every = self._all_of([mask for _, mask in masks])
        if query.sort:
            order = self._keep(
                ("order", query.sort, query.descending), lambda: self._order(query.sort, query.descending)
            )
            rows = order if every is None else order[every[order]]
        elif every is None:
            rows = np.arange(len(self.index), dtype=np.int32)
        else:
            rows = np.flatnonzero(every).astype(np.int32)
        return Found(rows, self._counts(masks, every))

    def _counts(self, masks: list[tuple[Part, np.ndarray]], every: np.ndarray | None) -> dict[str, Any]:
        index = self.index

        def without(kind: type, name: Any) -> np.ndarray | None:
            own = [isinstance(part, kind) and part[0] == name for part, _ in masks]
            return self._all_of([m for (_, m), mine in zip(masks, own, strict=True) if not mine]) if any(own) else every

        def tally(values: np.ndarray, mask: np.ndarray | None, length: int) -> list[int]:
            return np.bincount(values if mask is None else values[mask], minlength=length).tolist()

        choices = {}
        for name, values in index.choices.items():
            # -1 becomes 255 and is counted last.
            counted = tally(index.codes(name).view(np.uint8), without(Choice, name), 256)
            choices[name] = [*counted[: len(values)], counted[255]]
        ranges = {
            name: tally(index.bins(name), without(Range, name), NOTHING)[: facts["bins"]]
            for name, facts in index.ranges.items()
        }
        classes = {}
        for i in index.classes:
            mask = without(Class, i)
            has = index.has(i)
            classes[str(i)] = int(np.count_nonzero(has if mask is None else has[mask]))
        return {"choices": choices, "ranges": ranges, "classes": classes}

    def _all_of(self, masks: list[np.ndarray]) -> np.ndarray | None:
        """None stands for every row."""
        if not masks:
            return None
        together = masks[0].copy()
        for mask in masks[1:]:
            together &= mask
        return together

    def _mask(self, part: Part) -> np.ndarray:
        """bool [rows]"""
        index, table = self.index, self.index.table
        match part:
            case Word(text, wanted):
                # Most of a search's time: cores share it. For a plain text, a regular expression takes a third of the
                # time of match_substring.
                pattern = _literal(text)
                found = self._pool.map(lambda texts: pc.match_substring_regex(texts, pattern), table["~search"].chunks)
                mask = np.concatenate([_bools(part) for part in found] or [np.zeros(0, bool)])
                return mask if wanted else ~mask
            case Choice(name, values):
                chosen = np.zeros(256, bool)
                known = [str(v).lower() if isinstance(v, bool) else v for v in index.choices[name]]
                for value in values:
                    if value and value not in known:
                        raise UserError(f"{name}: no value {value!r}; there are {', '.join(known)}")
                    chosen[known.index(value) if value else 255] = True
                return chosen[index.codes(name).view(np.uint8)]
            case Where(text):
                return _bools(index.filter(text).mask(index.tables))
            case Chosen(view, revision):
                assert index.views is not None
                return index.views.mask(view, revision, table["shard"].to_numpy())
            case Range(name, low, high):
                mask = np.ones(len(index), bool)
                if low is not None:
                    mask &= _bools(pc.greater_equal(table[name], _bound(table[name], low, math.ceil)))
                if high is not None:
                    mask &= _bools(pc.less_equal(table[name], _bound(table[name], high, math.floor)))
                return mask
            case Class(id, wanted, share):
                if not wanted:
                    return index.has(id) == 0
                if share <= 0:
                    return index.has(id).view(bool)
                return _bools(pc.greater_equal(table[index.classes[id]], share))

    def _order(self, name: str, descending: bool) -> np.ndarray:
        """Every row, sorted; equal ones stay in the dataset's order."""
        if name == NAME:
            values = pc.replace_substring_regex(self.index.table["key"], "^[0-9a-f]+-", "")
        elif name in self.index.choices:
            codes = self.index.codes(name)
            ranks = np.argsort(np.argsort([str(value) for value in self.index.choices[name]]))
            values = pa.array(np.append(ranks, 0)[codes], mask=codes < 0)
        else:
            values = self.index.table[name]
        way = "descending" if descending else "ascending"
        return pc.array_sort_indices(_one(values), order=way).to_numpy().astype(np.int32)

    def _keep(self, key: Hashable, make: Any) -> Any:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return value


def _one(values: Any) -> pa.Array:
    """Chunks as one array: sorting them apart and merging takes several times as long."""
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _literal(text: str) -> str:
    """A regular expression (RE2) that matches the text and nothing else."""
    return "".join(c if c.isalnum() or c == " " or not c.isascii() else f"\\x{ord(c):02x}" for c in text)


def _bools(values: Any) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _bound(values: pa.ChunkedArray, bound: float | int, whole: Any) -> pa.Scalar:
    """The end of a range in the values' type, so that large integers are compared exactly."""
    return pa.scalar(whole(bound) if pa.types.is_integer(values.type) else float(bound), values.type)
