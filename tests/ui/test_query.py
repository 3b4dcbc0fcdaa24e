"""Queries find what a plain loop over the rows finds; wrong ones are refused with what would be right."""

import random
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from gallery_town import MOODS

from semiocity.errors import UserError
from semiocity.ui.browse import query
from semiocity.ui.browse.library import Library


def find(library: Library, text: str) -> list[int]:
    shelf = library.wait()
    return shelf.searcher.find(query.parse(parse_qs(text, keep_blank_values=True), shelf.index)).rows.tolist()


def rows_of(library: Library) -> list[dict[str, Any]]:
    index = library.wait().index
    names = [name for name in index.table.column_names if not name.startswith("~bin")]
    return [index.read(i, names) for i in range(len(index))]


def test_words_phrases_and_exclusions(library: Library) -> None:
    rows = rows_of(library)
    river = [i for i, row in enumerate(rows) if "river" in row["~search"]]
    assert find(library, "q=river") == river == find(library, "q=RIVER+street") and river
    assert find(library, "q=-river") == [i for i in range(40) if i not in river]
    assert find(library, 'q="number+7+under"') == [7]
    assert find(library, "q=école") == [i for i, row in enumerate(rows) if "école" in row["~search"]] != []
    assert len(find(library, "q=second")) == 38, "the full text is searched, not its beginning alone"
    assert find(library, "q=onerror") == [1], "nothing in a caption is special"
    assert find(library, "q=%25") == find(library, "q=.*") == []
    key = rows[11]["key"]
    assert find(library, f"q={key}") == [11]
    assert find(library, "q=") == list(range(40))


def test_random_queries_against_a_plain_loop(library: Library) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"random seed {seed}")
    dice = random.Random(seed)
    rows = rows_of(library)

    def number(value: Any) -> bool:
        return value is not None and value == value

    for _ in range(150):
        parts: list[tuple[str, str]] = []
        tests: list[Callable[..., bool]] = []
        if dice.random() < 0.4:
            moods = dice.sample(MOODS, dice.randint(1, 2))
            parts += [("in.seen.mood", mood or "") for mood in moods]
            tests.append(lambda row, moods=moods: row["seen.mood"] in moods)
        if dice.random() < 0.4:
            sharp = dice.choice([True, False])
            parts.append(("in.seen.sharp", str(sharp).lower()))
            tests.append(lambda row, sharp=sharp: row["seen.sharp"] is sharp)
        if dice.random() < 0.5:
            low, high = sorted(round(dice.uniform(-0.1, 1.1), 2) for _ in range(2))
            parts += [("min.seen.score", str(low)), ("max.seen.score", str(high))]
            ends = (low, high)
            tests.append(lambda row, e=ends: number(row["seen.score"]) and e[0] <= row["seen.score"] <= e[1])
        if dice.random() < 0.3:
            least = 2**53 + dice.randrange(40)
            parts.append(("min.seen.views", str(least)))
            tests.append(lambda row, least=least: row["seen.views"] is not None and row["seen.views"] >= least)
        if dice.random() < 0.4:
            wanted, share = dice.randrange(12), dice.choice([0, 0.02, 0.2])
            parts += [("with", str(wanted)), ("share", str(share))]
            most = (f"~share.{wanted}", share)
            tests.append(lambda row, m=most: row[m[0]] > 0 and row[m[0]] >= m[1])
        if dice.random() < 0.3:
            unwanted = dice.randrange(12)
            parts.append(("without", str(unwanted)))
            tests.append(lambda row, c=unwanted: row[f"~share.{c}"] == 0)
        expected = [i for i, row in enumerate(rows) if all(test(row) for test in tests)]
        sort = dice.choice(["", "seen.score", "-seen.score", "-seen.mood", "name"])
        parts.append(("sort", sort))
        field = sort.lstrip("-")
        if field == "name":
            expected.sort(key=lambda i: rows[i]["key"].partition("-")[2])
        elif field:
            have = [i for i in expected if number(rows[i][field])]
            # Python keeps the order of equal ones when it sorts backwards; so do we.
            have.sort(key=lambda i: rows[i][field], reverse=sort.startswith("-"))
            nan = [i for i in expected if rows[i][field] is not None and not number(rows[i][field])]
            expected = have + nan + [i for i in expected if rows[i][field] is None]
        shelf = library.wait()
        parameters: dict[str, list[str]] = {}
        for name, value in parts:
            parameters.setdefault(name, []).append(value)
        found = shelf.searcher.find(query.parse(parameters, shelf.index))
        assert found.rows.tolist() == expected, parts
        # Counts leave out the part about their own name: what one would get by choosing another value.
        others = [t for (t, n) in zip(tests, _names(parts), strict=True) if n != "in.seen.mood"]
        left = [row for row in rows if all(test(row) for test in others)]
        values = [*shelf.index.choices["seen.mood"], None]
        assert found.counts["choices"]["seen.mood"] == [sum(r["seen.mood"] == v for r in left) for v in values], parts


def _names(parts: list[tuple[str, str]]) -> list[str]:
    """The first parameter of each test, in the order in which tests were added."""
    seen: list[str] = []
    for name, _ in parts:
        if name not in seen and name not in ("max.seen.score", "share", "sort"):
            seen.append(name)
    return seen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in.seen.moo=calm", "choice seen.moo: no such scalar; did you mean seen.mood?"),
        ("in.seen.mood=angry", "seen.mood: no value 'angry'; there are"),
        ("min.seen.score=high", "min.seen.score: 'high' is no number"),
        ("max.seen.score=nan", "no finite number"),
        ("min.base.split=1", "range base.split: no such scalar"),
        ("with=12", "class '12': there is no such class id"),
        ("with=road", "class 'road'"),
        ("sort=-seen.nothing", "sort seen.nothing: no such scalar"),
        ("q=" + "x" * 2001, "longer than 2000 characters"),
        ("q=" + "a+" * 40, "more than 32 words"),
        ("share=x", "share: 'x' is no number"),
    ],
)
def test_what_cannot_be_is_refused(library: Library, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find(library, text)


def test_no_character_of_a_search_is_special(library: Library) -> None:
    shelf = library.wait()
    texts = [row["~search"] for row in rows_of(library)]
    for text in [chr(c) for c in range(1, 127) if chr(c) != "\n"] + [
        "é",
        "\\e",
        "(?i)",
        "[a-z]+",
        "$",
        "= x",
        "{7*7}",
        "\0",
    ]:
        found = shelf.searcher._mask(query.Word(text, True))
        assert found.tolist() == [text in own for own in texts], repr(text)


def test_expressions_are_those_of_views(library: Library) -> None:
    rows = rows_of(library)
    wide = "seen.score > 0.5 and base.width == 64 and not split == 'val'"
    expected = [i for i, r in enumerate(rows) if (r["seen.score"] or 0) > 0.5 and r["base.split"] != "val"]
    assert find(library, f"where={quote(wide)}") == expected != []
    assert find(library, f"where={quote('base.image.length > 0 and seen.tombstone is not None')}") == [5, 17]
    both = find(library, f"q=river&where={quote(wide)}")
    assert both == [i for i in expected if "river" in rows[i]["~search"]]
    for wrong in ("seen.scor > 1", "__import__('os')", "score >", "split", "1 == 1"):
        with pytest.raises(UserError, match="where: "):
            find(library, f"where={quote(wrong)}")


def test_integers_beyond_floats_are_exact(library: Library) -> None:
    assert find(library, f"min.seen.views={2**53 + 7}&max.seen.views={2**53 + 7}") == [7]
