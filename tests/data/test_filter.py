"""Filter expressions: what they select, how missing values count, and how a wrong one is refused."""

from __future__ import annotations

import operator
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from make_images import dice

from semiocity.data.filter import FilterError, parse, scalars_of

KINDS = {
    "base": {"split": "str", "width": "int", "height": "int", "score": "float", "ok": "bool", "image.length": "int"},
    "caption": {"text": "str", "share.road": "float", "words": "int", "share.2_wheeler": "float"},
}
ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
Row = dict[str, Any]


def tables(rows: list[Row]) -> dict[str, pa.Table]:
    """Rows are given by full names, column.scalar; what is not given is missing."""
    return {
        column: pa.table(
            {
                name: pa.array([row.get(f"{column}.{name}") for row in rows], ARROW[kind])
                for name, kind in scalars.items()
            }
        )
        for column, scalars in KINDS.items()
    }


def selected(text: str, rows: list[Row]) -> list[bool]:
    return parse(text, KINDS).mask(tables(rows)).to_pylist()


ROWS: list[Row] = [
    {"base.split": "train", "base.width": 640, "base.height": 480, "base.score": 0.75, "base.ok": True},
    {"base.split": "val", "base.width": 512, "base.height": 512, "base.score": 0.5, "base.ok": False},
    {"base.split": None, "base.width": None, "base.height": 512, "base.score": None, "base.ok": None},
]
for row, text, road in zip(ROWS, ("A red car", "No scarf", None), (0.5, 0.0, None)):
    row |= {"caption.text": text, "caption.share.road": road, "caption.words": text and len(text.split())}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('split == "train" and score > 0.5 and base.width >= 512 and "car" in caption.text', "TFF"),
        ('split in ["train", "test"]', "TFF"),
        ('split not in ("train", "test")', "FTF"),
        ('"car" in caption.text', "TTF"),
        ('"car" not in caption.text', "FFF"),
        ('word(caption.text, "CAR")', "TFF"),
        ('matches(caption.text, "^(A|An) ")', "TFF"),
        ('"a red" in lower(caption.text)', "TFF"),
        ('caption.text.lower().startswith("no")', "FTF"),
        ('endswith(upper(caption.text), "SCARF")', "FTF"),
        ("0.25 < caption.share.road <= 0.5", "TFF"),
        ("480 <= height < width", "TFF"),
        ("width / height > 1.25 or width is None", "TFT"),
        ("width * height - 640 * 480 == 0", "TFF"),
        ("width % 100 == 40 and width // 100 == 6", "TFF"),
        ("-width < -600 and abs(-width) == max(width, height) and min(width, height) == 480", "TFF"),
        ("len(caption.text) == 9", "TFF"),
        ("width > -9223372036854775808", "TTF"),
        ("ok", "TFF"),
        ("not ok", "FTT"),
        ("ok == False", "FTF"),
        ("ok is None", "FFT"),
        ("score is not None and caption.words != 2", "TFF"),
        ("(score > 0.6) == ok", "TTF"),
        ("width / (height - 512) > 0", "FFF"),
        ("image.length is None", "TTT"),
        ('scalar("caption.share.2_wheeler") is None', "TTT"),
        ('  split\n  == "train" \n', "TFF"),
    ],
)
def test_what_an_expression_selects(text: str, rows: str) -> None:
    assert selected(text, ROWS) == [letter == "T" for letter in rows]


def test_a_comparison_with_a_missing_value_is_false_and_its_negation_true() -> None:
    missing = ROWS[2:]
    for text in ("width == 1", "width != 1", "width < 1", "width >= 1", "width in [1]", "width not in [1]"):
        assert selected(text, missing) == [False], text
        assert selected(f"not {text}", missing) == [True], text
        assert selected(f"not ({text} or {text})", missing) == [True], text
    assert selected("width + 1 > 0", missing) == selected("max(width, height) > 0", missing) == [False]
    assert selected("(width + 1) is None", missing) == [True]


@pytest.mark.parametrize(
    ("text", "message", "mark"),
    [
        ("wdth > 3", "no scalar wdth; did you mean", "wdth"),
        ("base.widht > 3", "column base has no scalar widht; did you mean base.width", "base.widht"),
        ("mask.score > 3", "no scalar mask.score", "mask.score"),
        ('ok and base.image == ""', "base.image is a field: its bytes are in the tar", "base.image"),
        ("split > 3", "`>` compares a string with a whole number", "3"),
        ('width == "640"', "compares a whole number with a string", '"640"'),
        ("ok < True", "does not order truth values", "ok"),
        ("split in [1]", "looks for a string; this is a whole number", "1"),
        ("split in split", "written out", "split"),
        ("width in split", "looks for a string in a string", "width"),
        ("width in 3", "stands a list or a string", "3"),
        ("width", "a filter must be true or false for each row; this is a whole number", "width"),
        ("ok and width", "`and` joins conditions; this is a whole number", "width"),
        ("split + 1 == 2", "`+` needs numbers; this is a string", "split"),
        ("score % 2 == 1", "`%` needs whole numbers", "score"),
        ("width == None", "by `is None`", "None"),
        ("width is 3", "compares with None only", "3"),
        ("width == [1, 2]", "right of `in`", "["),
        ("split[0] == 1", "cannot be part of a filter", "split"),
        ("width if ok else height", "cannot be part of a filter", "width"),
        ("width ** 2 > 3", "cannot be part of a filter", "width"),
        ("(lambda: ok)()", "no such function", "("),
        ('__import__("os").system("true")', "no such function", "__import__"),
        ("eval(split)", "no function eval", "eval"),
        ("len(split, 1) > 3", "takes 1 argument, got 2", "len"),
        ("len(width) > 3", "takes a string here", "width"),
        ('startswith("a", split)', "written out", "split"),
        ('matches(split, "(")', "not a regular expression", '"("'),
        ('"é" == split and wdth', "no scalar wdth", "wdth"),
        ("width > 99999999999999999999", "beyond 64 bits", "99999"),
        ('split == b"train"', "a bytes cannot be part", 'b"'),
        ('f"{split}" == split', "cannot be part", "f"),
        ("ok # and\nnot ok", "no comments", "#"),
        ("1 < 2", "names no scalar", "1"),
        ("split ==", "invalid syntax", None),
        ("", "empty expression", None),
    ],
)
def test_a_wrong_expression_is_refused_with_its_place(text: str, message: str, mark: str | None) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text, KINDS, where="views/x.toml: filter")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("views/x.toml: filter: ") and message in lines[0]
    if mark is not None:
        assert lines[1][lines[2].index("^") :].startswith(mark), lines


def test_what_is_too_large_or_too_deep_is_refused() -> None:
    for text in ("not " * 100 + "ok", "(" * 500 + "ok" + ")" * 500, "ok or " * 3000 + "ok", "-" * 5000 + "width > 1"):
        with pytest.raises(FilterError.__mro__[1]):
            parse(text, KINDS)


def test_a_number_that_outgrows_64_bits_is_an_error_not_another_number() -> None:
    with pytest.raises(FilterError, match="overflow"):
        selected("width * 9223372036854775807 > 0", ROWS)
    with pytest.raises(FilterError, match="regular expression"):
        selected('matches(split, "(?=a)")', ROWS)  # Python knows it, Arrow's engine does not


def test_only_what_an_expression_names_is_read() -> None:
    found = parse('"a" in caption.text and (split == "train" or width < height)', KINDS)
    assert found.reads == {"base": ["height", "split", "width"], "caption": ["text"]}
    only = {"base": tables(ROWS)["base"].select(["height", "split", "width"])}
    only["caption"] = tables(ROWS)["caption"].select(["text"])
    assert found.mask(only).to_pylist() == [True, False, False]


def test_spellings_of_one_expression_are_one() -> None:
    one, other = (
        parse(text, KINDS).spelled() for text in ('split=="a" and width>1', "(base.split == 'a') and\nwidth > 1")
    )
    assert one == other != parse('split == "a" and width > 2', KINDS).spelled()


def test_what_can_be_named_comes_from_the_manifest() -> None:
    columns = {"base": {"fields": {"image": "jpg|png"}, "scalars": {"split": "str"}}}
    assert scalars_of(columns)["base"] == {
        "key": "str",
        "tombstone": "str",
        "reason": "str",
        "image.length": "int",
        "image.ext": "str",
        "split": "str",
    }


def test_checking_needs_no_arrow() -> None:
    code = (
        "import sys; from semiocity.data.filter import parse; "
        "parse('a > 1', {'base': {'a': 'int'}}); print([m for m in ('pyarrow', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------- against plain Python

Maker = tuple[str, Callable[[Row], Any]]
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def name(column: str, scalar: str) -> Maker:
    return f"{column}.{scalar}", lambda row: row.get(f"{column}.{scalar}")


def literal(value: Any) -> Maker:
    return repr(value), lambda row: value


def lifted(function: Callable[..., Any], *parts: Maker) -> Callable[[Row], Any]:
    """Missing when a part is missing."""

    def value(row: Row) -> Any:
        found = [part[1](row) for part in parts]
        return None if any(item is None for item in found) else function(*found)

    return value


def whole(r: random.Random, depth: int) -> Maker:
    if depth == 0 or r.random() < 0.3:
        return r.choice(
            [name("base", "width"), name("base", "height"), name("caption", "words"), literal(r.randint(-9, 9))]
        )
    a, b = whole(r, depth - 1), whole(r, depth - 1)
    match r.randrange(6):
        case 0:
            return f"({a[0]} + {b[0]})", lifted(operator.add, a, b)
        case 1:
            return f"({a[0]} * {b[0]})", lifted(operator.mul, a, b)
        case 2:
            return f"({a[0]} // {b[0]})", lifted(lambda x, y: x // y if y else None, a, b)
        case 3:
            return f"({a[0]} % {b[0]})", lifted(lambda x, y: x % y if y else None, a, b)
        case 4:
            return f"max({a[0]}, -{b[0]})", lifted(lambda x, y: max(x, -y), a, b)
    text = r.choice([name("base", "split"), name("caption", "text")])
    return f"len({text[0]})", lifted(len, text)


def number(r: random.Random, depth: int) -> Maker:
    if r.random() < 0.4:
        return whole(r, depth)
    if depth == 0:
        return r.choice([name("base", "score"), name("caption", "share.road"), literal(r.randint(-8, 8) / 4)])
    a, b = number(r, depth - 1), number(r, depth - 1)
    if r.random() < 0.5:
        return f"({a[0]} / {b[0]})", lifted(lambda x, y: x / y if y else None, a, b)
    return f"({a[0]} - {b[0]})", lifted(operator.sub, a, b)


def string(r: random.Random, depth: int) -> Maker:
    part = r.choice([name("base", "split"), name("caption", "text"), literal(r.choice(["a", "B", "ab", ""]))])
    if depth and r.random() < 0.4:
        word = r.choice(["lower", "upper"])
        return f"{word}({part[0]})", lifted(getattr(str, word), part)
    return part


def condition(r: random.Random, depth: int) -> Maker:
    if depth and r.random() < 0.6:
        a, b = condition(r, depth - 1), condition(r, depth - 1)
        match r.randrange(3):
            case 0:
                return f"({a[0]} and {b[0]})", lambda row: a[1](row) and b[1](row)
            case 1:
                return f"({a[0]} or {b[0]})", lambda row: a[1](row) or b[1](row)
        return f"(not {a[0]})", lambda row: not a[1](row)
    kind = r.choice([number, string])
    match r.randrange(6):
        case 0:
            parts = [kind(r, depth) for _ in range(r.randint(2, 3))]
            words = [r.choice(list(COMPARE)) for _ in parts[1:]]
            text = parts[0][0] + "".join(f" {word} {part[0]}" for word, part in zip(words, parts[1:]))
            pairs = [lifted(COMPARE[w], a, b) for w, a, b in zip(words, parts, parts[1:])]
            return f"({text})", lambda row: all(bool(pair(row)) for pair in pairs)
        case 1:
            part = kind(r, depth)
            values = [r.randint(-3, 9) for _ in range(r.randint(0, 4))] if kind is number else ["a", "ab"]
            word, sense = r.choice([("in", True), ("not in", False)])
            return f"({part[0]} {word} {values})", lambda row: bool(lifted(lambda x: (x in values) == sense, part)(row))
        case 2:
            part = kind(r, depth)
            return f"({part[0]} is None)", lambda row: part[1](row) is None
        case 3:
            part, piece = string(r, depth), r.choice(["a", "b", ""])
            word, sense = r.choice([("in", True), ("not in", False)])
            return f'("{piece}" {word} {part[0]})', lambda row: bool(lifted(lambda x: (piece in x) == sense, part)(row))
        case 4:
            part, piece = string(r, depth), r.choice(["a", "A", "ab"])
            return f'{part[0]}.startswith("{piece}")', lambda row: bool(
                lifted(lambda x: x.startswith(piece), part)(row)
            )
    return "base.ok", lambda row: bool(row.get("base.ok"))


def random_rows(r: random.Random, count: int) -> list[Row]:
    def maybe(value: Any) -> Any:
        return value if r.random() < 0.8 else None

    return [
        {
            "base.split": maybe(r.choice(["a", "ab", "B"])),
            "base.width": maybe(r.randint(-9, 9)),
            "base.height": maybe(r.randint(-3, 3)),
            "base.score": maybe(r.randint(-4, 4) / 4),
            "base.ok": maybe(r.random() < 0.5),
            "caption.text": maybe(r.choice(["", "Ab", "bab", "a"])),
            "caption.share.road": maybe(r.randint(0, 4) / 4),
            "caption.words": maybe(r.randint(0, 5)),
        }
        for _ in range(count)
    ]


def test_random_expressions_select_what_plain_python_selects() -> None:
    r = dice()
    both: set[bool] = set()
    for _ in range(250):
        text, expected = condition(r, r.randint(0, 3))
        if "base." not in text and "caption." not in text:
            continue
        rows = random_rows(r, 20)
        found = selected(text, rows)
        assert found == [expected(row) for row in rows], text
        both |= set(found)
    assert both == {True, False}
