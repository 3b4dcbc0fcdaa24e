"""Computes a checked filter over Arrow tables.

Missing values: a comparison, `in` or function of a missing value is false, so `x != 1` and `x == 1` are both false
where x is missing, and `not x == 1` is true. Arithmetic with a missing value is missing, and so is division by zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from semiocity.data.filter import Name, Node, Op, Value

if TYPE_CHECKING:
    from semiocity.data.filter import Filter

ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


def mask(checked: Filter, tables: Mapping[str, pa.Table]) -> pa.BooleanArray:
    """See `Filter.mask`."""
    rows = next((table.num_rows for table in tables.values()), 0)
    found = _Computation(checked, tables).condition(checked.tree)
    if isinstance(found, pa.Scalar):
        return pa.repeat(found, rows)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


class _Computation:
    def __init__(self, checked: Filter, tables: Mapping[str, pa.Table]) -> None:
        self.checked, self.tables = checked, tables

    def condition(self, node: Node) -> Any:
        """Truth values without nulls: what is missing is not true."""
        found = self.value(node)
        return pc.fill_null(found, False)

    def value(self, node: Node) -> Any:
        match node:
            case Value(value, kind):
                return value if kind == "list" else pa.scalar(value, ARROW[kind])
            case Name(column, scalar, kind):
                found = self.tables[column].column(scalar)
                return found if found.type == ARROW[kind] else found.cast(ARROW[kind])
            case Op("and" | "or" as name, parts):
                join = pc.and_ if name == "and" else pc.or_
                found = self.condition(parts[0])
                for part in parts[1:]:
                    found = join(found, self.condition(part))
                return found
            case Op("not", (part,)):
                return pc.invert(self.condition(part))
            case Op(name, parts, kind):
                try:
                    found = OPERATORS[name](*map(self.value, parts))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    self.checked.fail(node.place, f"{_first_line(error)}")
                return pc.fill_null(found, False) if kind == "bool" else found


def _true_divide(a: Any, b: Any) -> Any:
    return pc.divide(pc.cast(a, pa.float64()), _not_zero(pc.cast(b, pa.float64())))


def _floor_divide(a: Any, b: Any) -> Any:
    b = _not_zero(b)
    whole = pc.divide_checked(a, b)  # rounds towards zero
    rest = pc.subtract(a, pc.multiply(whole, b))
    down = pc.and_(pc.not_equal(rest, 0), pc.xor(pc.less(rest, 0), pc.less(b, 0)))
    return pc.subtract(whole, pc.cast(down, pa.int64()))


def _modulo(a: Any, b: Any) -> Any:
    return pc.subtract(a, pc.multiply(_floor_divide(a, b), b))


def _not_zero(b: Any) -> Any:
    return pc.if_else(pc.equal(b, pa.scalar(0, b.type)), pa.scalar(None, b.type), b)


def _is_in(a: Any, values: list[Any]) -> Any:
    if pa.types.is_integer(a.type) and any(isinstance(value, float) for value in values):
        a = pc.cast(a, pa.float64())
    found = pc.is_in(a, value_set=pa.array(values, a.type))
    return pc.and_(pc.is_valid(a), found)


def _not_in(a: Any, values: list[Any]) -> Any:
    return pc.and_(pc.is_valid(a), pc.invert(_is_in(a, values)))


def _word(a: Any, text: pa.Scalar) -> Any:
    return pc.match_substring_regex(a, rf"\b{re.escape(text.as_py())}\b", ignore_case=True)


def _both(join: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: join(a, b, skip_nulls=False)


OPERATORS: dict[str, Callable[..., Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "in": _is_in,
    "not in": _not_in,
    "contains": lambda a, text: pc.match_substring(a, text.as_py()),
    "lacks": lambda a, text: pc.invert(pc.match_substring(a, text.as_py())),
    "missing": pc.is_null,
    "+": pc.add_checked,
    "-": pc.subtract_checked,
    "*": pc.multiply_checked,
    "/": _true_divide,
    "//": _floor_divide,
    "%": _modulo,
    "negative": pc.negate_checked,
    "abs": pc.abs_checked,
    "min": _both(pc.min_element_wise),
    "max": _both(pc.max_element_wise),
    "len": lambda a: pc.cast(pc.utf8_length(a), pa.int64()),
    "lower": pc.utf8_lower,
    "upper": pc.utf8_upper,
    "strip": pc.utf8_trim_whitespace,
    "startswith": lambda a, text: pc.starts_with(a, text.as_py()),
    "endswith": lambda a, text: pc.ends_with(a, text.as_py()),
    "word": _word,
    "matches": lambda a, text: pc.match_substring_regex(a, text.as_py()),
}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
