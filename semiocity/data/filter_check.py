"""Checks a filter expression: from Python's syntax tree to a tree of our own in which every name and type is known."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from semiocity.errors import UserError

Scalars = Mapping[str, Mapping[str, str]]
"""Column → scalar → kind: int, float, str or bool."""

BASE = "base"
DEEPEST = 60
"""Levels of nesting."""


class FilterError(UserError):
    """The expression is wrong; the message shows the place."""


@dataclass(frozen=True)
class Value:
    """A number, string or truth value, or a list of them (right of `in`)."""

    value: Any
    kind: str
    place: int = 0

    def spelled(self) -> Any:
        return {"is": self.value}


@dataclass(frozen=True)
class Name:
    """A scalar of a column."""

    column: str
    scalar: str
    kind: str
    place: int = 0

    def spelled(self) -> Any:
        return f"{self.column}.{self.scalar}"


@dataclass(frozen=True)
class Op:
    """An operator or function; `filter_arrow.OPERATORS` computes it."""

    name: str
    parts: tuple[Node, ...]
    kind: str
    place: int = 0

    def spelled(self) -> Any:
        return [self.name, *(part.spelled() for part in self.parts)]


Node = Value | Name | Op


def resolve(dotted: str, scalars: Scalars) -> tuple[str, str] | None:
    """(column, scalar) of a dotted name; a name that begins with no column is a scalar of base. None: no such."""
    column, dot, rest = dotted.partition(".")
    if dot and rest in scalars.get(column, {}):
        return column, rest
    return (BASE, dotted) if dotted in scalars.get(BASE, {}) else None


def error_at(text: str, place: int, message: str, where: str) -> FilterError:
    """A FilterError that shows the expression with a mark below the place (in characters, from 0)."""
    begin = max(0, place - 60)
    shown = text[begin : begin + 100]
    return FilterError(f"{where}: {message} (character {place + 1})\n  {shown}\n  {' ' * (place - begin)}^")


NUMBERS = ("int", "float")
COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"}

# Function → kinds of its arguments and of its result. "number" is int or float; "text" is a string written out.
FUNCTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "len": (("str",), "int"),
    "lower": (("str",), "str"),
    "upper": (("str",), "str"),
    "strip": (("str",), "str"),
    "startswith": (("str", "text"), "bool"),
    "endswith": (("str", "text"), "bool"),
    "word": (("str", "text"), "bool"),
    "matches": (("str", "text"), "bool"),
    "abs": (("number",), "number"),
    "min": (("number", "number"), "number"),
    "max": (("number", "number"), "number"),
}


class Checker:
    """From Python's syntax tree to ours."""

    def __init__(self, text: str, shift: int, source: str, scalars: Scalars, where: str) -> None:
        self.text, self.shift, self.source, self.scalars, self.where = text, shift, source, scalars, where

    def fail(self, at: ast.AST | Node | int, message: str) -> NoReturn:
        place = at if isinstance(at, int) else at.place if isinstance(at, Node) else self.place(at)
        raise error_at(self.text, place, message, self.where)

    def place(self, node: ast.AST) -> int:
        offset: int = node.col_offset  # type: ignore[attr-defined]
        return self.shift + len(self.source.encode()[:offset].decode())

    def expect(self, node: Node, kind: str, why: str) -> Node:
        fits = node.kind in NUMBERS if kind == "number" else node.kind == kind
        if not fits:
            self.fail(node, f"{why}; this is {_a(node.kind)}")
        return node

    def node(self, tree: ast.expr, depth: int) -> Node:  # noqa: RET503
        if depth > DEEPEST:
            self.fail(tree, f"nested more than {DEEPEST} deep")
        place = self.place(tree)

        def inner(part: ast.expr) -> Node:
            return self.node(part, depth + 1)

        match tree:
            case ast.Constant():
                return self.literal(tree)
            case ast.Name() | ast.Attribute():
                return self.name(tree, _dotted(tree))
            case ast.BoolOp(op, values):
                word = "and" if isinstance(op, ast.And) else "or"
                parts = [self.expect(inner(v), "bool", f"`{word}` joins conditions") for v in values]
                return Op(word, tuple(parts), "bool", place)
            case ast.UnaryOp(ast.Not(), operand):
                return Op("not", (self.expect(inner(operand), "bool", "`not` needs a condition"),), "bool", place)
            case ast.UnaryOp(ast.USub(), ast.Constant(int(value))) if value == 2**63:
                return Value(-value, "int", place)  # the smallest number; without its sign it would be too large
            case ast.UnaryOp(ast.USub(), operand):
                part = self.expect(inner(operand), "number", "`-` needs a number")
                if isinstance(part, Value):
                    return Value(-part.value, part.kind, place)
                return Op("negative", (part,), part.kind, place)
            case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
                return self.arithmetic(ARITHMETIC[type(op)], inner(left), inner(right), place)
            case ast.Compare(left, ops, comparators):
                return self.comparison([left, *comparators], ops, inner, place)
            case ast.Call():
                return self.call(tree, inner, place)
            case ast.List() | ast.Tuple() | ast.Set():
                self.fail(tree, "a list may only stand right of `in`")
        self.fail(tree, "this cannot be part of a filter")

    def literal(self, tree: ast.Constant) -> Value:  # noqa: RET503
        value, place = tree.value, self.place(tree)
        match value:
            case bool():
                return Value(value, "bool", place)
            case int():
                return Value(value, "int", place) if value < 2**63 else self.fail(tree, "beyond 64 bits")
            case float():
                return Value(value, "float", place)
            case str():
                return Value(value, "str", place) if _is_utf8(value) else self.fail(tree, "no valid text")
            case None:
                return Value(None, "none", place)
        self.fail(tree, f"a {type(value).__name__} cannot be part of a filter")

    def name(self, tree: ast.expr, dotted: str | None) -> Name:
        if dotted is None:
            self.fail(tree, "expected a scalar's name, such as base.width")
        found = resolve(dotted, self.scalars)
        if found is None:
            self.fail(tree, self.unknown(dotted))
        column, scalar = found
        return Name(column, scalar, self.scalars[column][scalar], self.place(tree))

    def unknown(self, dotted: str) -> str:
        column, _, rest = dotted.partition(".")
        names = [f"{c}.{s}" for c, known in self.scalars.items() for s in known]
        near = get_close_matches(dotted, [*names, *self.scalars.get(BASE, {})], n=3)
        if f"{rest or dotted}.length" in self.scalars.get(column if rest else BASE, {}):
            return f"{dotted} is a field: its bytes are in the tar, which filters do not open" + _maybe(near)
        if rest and column in self.scalars:
            there = sorted(s for s in self.scalars[column] if "." not in s or s.startswith(rest.split(".")[0]))
            return f"column {column} has no scalar {rest}" + (_maybe(near) or f"; it has {', '.join(there)}")
        return f"no scalar {dotted}" + (_maybe(near) or f"; there are columns {', '.join(self.scalars)}")

    def arithmetic(self, name: str, left: Node, right: Node, place: int) -> Node:
        for part in (left, right):
            self.expect(part, "number", f"`{name}` needs numbers")
        both = left.kind == right.kind == "int"
        if name in ("//", "%") and not both:
            self.fail(left if left.kind != "int" else right, f"`{name}` needs whole numbers; this is {_a('float')}")
        return Op(name, (left, right), "int" if both and name != "/" else "float", place)

    def comparison(
        self, operands: list[ast.expr], ops: Sequence[ast.cmpop], inner: Callable[[ast.expr], Node], place: int
    ) -> Node:
        """`a < b <= c` is `a < b and b <= c`."""
        pairs: list[Node] = []
        left = inner(operands[0])
        for op, tree in zip(ops, operands[1:], strict=True):
            right = self.items(tree) if isinstance(tree, (ast.List, ast.Tuple, ast.Set)) else inner(tree)
            pairs.append(self.pair(left, op, right))
            left = right
        return pairs[0] if len(pairs) == 1 else Op("and", tuple(pairs), "bool", place)

    def pair(self, left: Node, op: ast.cmpop, right: Node) -> Node:
        place = left.place
        if isinstance(op, (ast.Is, ast.IsNot)):
            if right.kind != "none" or left.kind == "none":
                self.fail(right, "`is` compares with None only, as in `caption.short is None`")
            missing = Op("missing", (left,), "bool", place)
            return missing if isinstance(op, ast.Is) else Op("not", (missing,), "bool", place)
        for part in (left, right):
            if part.kind == "none":
                self.fail(part, "compare with None by `is None` or `is not None`")
        if isinstance(op, (ast.In, ast.NotIn)):
            return self.membership(left, right, "in" if isinstance(op, ast.In) else "not in")
        name = COMPARE[type(op)]
        if right.kind == "list" or left.kind == "list":
            self.fail(right if right.kind == "list" else left, "a list may only stand right of `in`")
        if left.kind != right.kind and not (left.kind in NUMBERS and right.kind in NUMBERS):
            self.fail(right, f"`{name}` compares {_a(left.kind)} with {_a(right.kind)}")
        if left.kind == "bool" and name not in ("==", "!="):
            self.fail(left, f"`{name}` does not order truth values")
        return Op(name, (left, right), "bool", place)

    def membership(self, left: Node, right: Node, word: str) -> Node:
        if right.kind == "list":
            for item in right.value:  # type: ignore[union-attr]
                if item.kind != left.kind and not (item.kind in NUMBERS and left.kind in NUMBERS):
                    self.fail(item, f"`{word}` looks for {_a(left.kind)}; this is {_a(item.kind)}")
            values = Value([item.value for item in right.value], "list", right.place)  # type: ignore[union-attr]
            return Op(word, (left, values), "bool", left.place)
        self.expect(right, "str", f"right of `{word}` stands a list or a string")
        self.expect(left, "str", f"`{word}` looks for a string in a string")
        if not isinstance(left, Value):
            self.fail(left, f'left of `{word}` in a string stands a string written out, such as "car"')
        return Op("contains" if word == "in" else "lacks", (right, left), "bool", left.place)

    def items(self, tree: ast.List | ast.Tuple | ast.Set) -> Value:
        found = []
        for element in tree.elts:
            item = self.node(element, 0)
            if not isinstance(item, Value) or item.kind == "none":
                self.fail(item, "a list holds numbers, strings or truth values that are written out")
            found.append(item)
        return Value(found, "list", self.place(tree))

    def call(self, tree: ast.Call, inner: Callable[[ast.expr], Node], place: int) -> Node:
        arguments = list(tree.args)
        match tree.func:
            case ast.Name(name):
                pass
            case ast.Attribute(value, name) if name in FUNCTIONS:  # caption.text.lower() is lower(caption.text)
                arguments.insert(0, value)
            case _:
                self.fail(tree, f"no such function; there are {', '.join((*FUNCTIONS, 'scalar'))}")
        if tree.keywords:
            self.fail(tree, "functions take no named arguments")
        if name == "scalar":
            match arguments:
                case [ast.Constant(str(dotted))]:
                    return self.name(tree, dotted)
            self.fail(tree, 'scalar() takes a name in quotes, as in scalar("caption.share.2_wheeler")')
        if name not in FUNCTIONS:
            near = get_close_matches(name, FUNCTIONS)
            self.fail(
                tree, f"no function {name}" + (_maybe(near) or f"; there are {', '.join((*FUNCTIONS, 'scalar'))}")
            )
        kinds, result = FUNCTIONS[name]
        if len(arguments) != len(kinds):
            self.fail(tree, f"{name}() takes {len(kinds)} argument{'s' * (len(kinds) > 1)}, got {len(arguments)}")
        parts = []
        for kind, part in zip(kinds, map(inner, arguments), strict=True):
            wanted = "str" if kind == "text" else kind
            parts.append(self.expect(part, wanted, f"{name}() takes {_a(wanted)} here"))
            if kind == "text" and not isinstance(part, Value):
                self.fail(part, f"{name}() takes a string that is written out here")
        if name == "matches":
            self.pattern(parts[1])
        if result == "number":
            result = "int" if all(part.kind == "int" for part in parts) else "float"
        return Op(name, tuple(parts), result, place)

    def pattern(self, part: Node) -> None:
        try:
            re.compile(part.value)  # type: ignore[union-attr]
        except re.error as error:
            self.fail(part, f"not a regular expression: {error}")


def _dotted(tree: ast.expr) -> str | None:
    match tree:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            before = _dotted(value)
            return None if before is None else f"{before}.{name}"
    return None


def _a(kind: str) -> str:
    return {
        "int": "a whole number",
        "float": "a number",
        "number": "a number",
        "str": "a string",
        "bool": "a truth value",
        "none": "None",
        "list": "a list",
    }[kind]


def _maybe(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
