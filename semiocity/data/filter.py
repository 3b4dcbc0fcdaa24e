"""Filter expressions over scalars: `split == "train" and base.width >= 512 and "car" in caption.text`.

The spelling is Python's; Python never runs it. The text is parsed to a syntax tree, every node must be one that
`filter_check` knows, names and types are checked against the manifest's scalars, and what is left is a tree of our own
that `filter_arrow` computes with Arrow. docs/filters.md is the language's reference. Login-node code: no pyarrow.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from semiocity.data.filter_check import Checker, FilterError, Name, Node, Op, Scalars, Value, error_at, resolve
from semiocity.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["VERSION", "Filter", "FilterError", "Name", "Op", "Scalars", "Value", "parse", "resolve", "scalars_of"]

VERSION = 1
"""Raised whenever the same expression would select other rows of the same tables."""

LONGEST_TEXT = 1000
"""Characters of a caption that are kept as a scalar, where filters and searches find them."""

LONGEST = 10_000
"""Characters of an expression."""


@dataclass(frozen=True)
class Filter:
    """A checked expression."""

    text: str
    tree: Node
    where: str = "filter"

    @cached_property
    def reads(self) -> dict[str, list[str]]:
        """Column → the scalars of it that the expression names."""
        found: dict[str, set[str]] = {}
        for name in _names(self.tree):
            found.setdefault(name.column, set()).add(name.scalar)
        return {column: sorted(found[column]) for column in sorted(found)}

    def spelled(self) -> Any:
        """The expression as one JSON value, the same for all spellings of it; goes into digests."""
        return self.tree.spelled()

    def mask(self, tables: Mapping[str, pa.Table]) -> pa.BooleanArray:
        """One truth value a row; never null.

        `tables` holds, for every column of `reads`, a table with those scalars; all have the same rows.
        Raises FilterError when a number grows beyond 64 bits.
        """
        from semiocity.data.filter_arrow import mask

        return mask(self, tables)

    def fail(self, place: int, message: str) -> NoReturn:
        raise error_at(self.text, place, message, self.where)


def parse(text: str, scalars: Scalars, where: str = "filter") -> Filter:
    """Parse and check an expression. Raises FilterError, its message beginning with `where` and showing the place."""
    line = text.replace("\r", " ").replace("\n", " ")  # lists and long conditions may be broken into lines
    source = line.lstrip()
    shift = len(line) - len(source)
    if not source.strip():
        raise error_at(line, 0, "empty expression", where)
    if len(source) > LONGEST:
        raise UserError(f"{where}: {len(source)} characters; at most {LONGEST}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\\d" in a pattern
            tree = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise error_at(line, shift + (error.offset or 1) - 1, error.msg, where) from None
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"{where}: cannot be parsed: too deeply nested, or it holds a zero byte") from None
    if b"#" in source.encode()[tree.end_col_offset :]:  # joined lines after it would be lost without a word
        raise error_at(line, line.rindex("#"), "no comments inside a filter", where)
    checker = Checker(line, shift, source, scalars, where)
    checked = checker.node(tree, 0)
    checker.expect(checked, "bool", "a filter must be true or false for each row")
    if next(_names(checked), None) is None:
        raise error_at(line, shift, "names no scalar: it would be the same for all rows", where)
    return Filter(line, checked, where)


def scalars_of(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """What a filter may name, from the "columns" of a dataset's manifest (or anything with "fields" and "scalars").

    Beside a column's scalars: `key`, `tombstone` (kind of failure), `reason`, and `FIELD.length` (bytes) and
    `FIELD.ext` of each field.
    """
    found: dict[str, dict[str, str]] = {}
    for name, column in columns.items():
        index = {"key": "str", "tombstone": "str", "reason": "str"}
        for field in column["fields"]:
            index |= {f"{field}.length": "int", f"{field}.ext": "str"}
        found[name] = index | dict(column["scalars"])
    return found


def _names(node: Node) -> Iterator[Name]:
    match node:
        case Name():
            yield node
        case Op(parts=parts):
            for part in parts:
                yield from _names(part)
