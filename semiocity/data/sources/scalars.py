"""Columns that become scalars of the shards' index: declared in the recipe, with their types. Login-node code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from semiocity.config import Strict
from semiocity.errors import UserError

Kind = Literal["int", "float", "str", "bool"]

USUAL_SPLITS = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What datasets call their splits → what they are called here."""

RESERVED = frozenset({"key", "tombstone", "reason", "split", "width", "height", "license", "origin", "blurred"})
NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Scalar(Strict):
    """One declared scalar. `aesthetic = "float"` is short for `aesthetic = {type = "float"}`."""

    type: Kind
    column: str | None = None
    """The column (or json key) it is read from; by default the scalar's own name."""


def _names(scalars: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    for name in scalars:
        if not NAME.fullmatch(name):
            raise ValueError(f'{name!r} cannot name a scalar; write a name of a-z, 0-9 and _, and column = "{name}"')
        if name in RESERVED:
            raise ValueError(f"every row has a scalar {name} already; choose another name")
        if name.rpartition(".")[2] in ("ext", "offset", "length", "crc32"):
            raise ValueError(f"{name}: the index keeps names that end so for fields; choose another name")
    return scalars


def _spelled(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Scalars = Annotated[
    dict[str, Annotated[Scalar, BeforeValidator(_spelled)]],
    AfterValidator(_names),
]
"""Annotation for `source.scalars`: name → type, or → {type, column}."""


def columns_of(scalars: Mapping[str, Scalar]) -> list[str]:
    """The columns that declared scalars are read from."""
    return [spec.column or name for name, spec in scalars.items()]


def types_of(scalars: Mapping[str, Scalar]) -> dict[str, Kind]:
    """Name → type, as a shard's head declares them."""
    return {name: spec.type for name, spec in scalars.items()}


def values_of(scalars: Mapping[str, Scalar], found: Mapping[str, Any]) -> dict[str, Any]:
    """The declared scalars of a row, of their types; None where `found` (column → value) has none.

    Raises ValueError that names the column and the value.
    """
    return {
        name: typed(found.get(spec.column or name), spec.type, spec.column or name) for name, spec in scalars.items()
    }


def typed(value: Any, kind: Kind, column: str) -> Any:
    """A value as `kind`. Text is parsed as tables spell it; empty text, null and NaN are None, text only for "str".

    Raises ValueError that names the column and the value.
    """
    if value is None or (value == "" and kind != "str") or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return _CONVERT[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"column {column}: {value!r:.80} is no {kind}") from None


def _int(value: Any) -> int:
    number = int(value) if isinstance(value, str) else value
    if isinstance(number, bool) or number != int(number) or not -(2**63) <= number < 2**63:
        raise ValueError
    return int(number)


def _float(value: Any) -> float | None:
    number = float(value)
    if isinstance(value, bool) or math.isinf(number):
        raise ValueError
    return None if math.isnan(number) else number


def _bool(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _TRUTH:
        raise ValueError
    return _TRUTH[word]


def _str(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, dict)):
        raise ValueError
    # A lone surrogate is no text: the index could not hold it.
    return str(value).encode().decode()


_CONVERT = {"int": _int, "float": _float, "str": _str, "bool": _bool}


def first_text(value: Any) -> str | None:
    """A caption as tables hold it: text, or a list of them of which the first counts; None where there is none."""
    if isinstance(value, (list, tuple)):
        value = next((item for item in value if item), None)
    return None if value is None or value == "" else str(value)


def split_name(value: Any, names: Mapping[str, str]) -> str:
    """The split that a table or a folder calls `value`: renamed by `names`, else as USUAL_SPLITS says.

    Raises UserError for what cannot name a split.
    """
    text = str(value)
    name = names.get(text, USUAL_SPLITS.get(text, text))
    if not SPLIT_NAME.fullmatch(name):
        raise UserError(
            f"{text!r:.80} cannot name a split (letters, digits, _ and -); rename it: source.splits = {{…}}"
        )
    return name


def row_facts(found: Mapping[str, Any], columns: Mapping[str, str | None]) -> dict[str, str]:
    """`license` and `origin` of a row, where it has its own. `columns`: scalar → the column that holds it."""
    values = {name: found.get(column) for name, column in columns.items() if column}
    return {name: plain_text(value) for name, value in values.items() if value not in (None, "")}


def plain_text(value: Any) -> str:
    """Text that any index can hold: what is no Unicode character is escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode()
