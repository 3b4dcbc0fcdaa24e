"""Captions from label maps say what is in them: checked on maps made by hand, where everything is known."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_data import STREET, read_column, run_stage, street_rows, write_base

from semiocity.data.sources.city import CLASSES, scene
from semiocity.stages.base import make_stage
from semiocity.stages.caption import share_names
from semiocity.stages.label_facts import measure, shares
from semiocity.stages.label_sentences import describe
from semiocity.stages.words import article, counted, look_up, plural

SIZE = 96
NAMES = ["sky", "building", "road", "pavement", "tree", "car", "person", "glow_worm-nest", "window"]
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, ODD, WINDOW = range(9)
IGNORE = 11


class Canvas:
    """A label and an instance map to draw boxes on, in 96ths of the picture."""

    def __init__(self, background: int = SKY, size: int = SIZE) -> None:
        self.size = size
        self.label = np.full((size, size), background, dtype=np.uint8)
        self.instance = np.zeros((size, size), dtype=np.uint16)
        self.last = 0

    def box(self, kind: int, top: int, bottom: int, left: int, right: int, thing: bool = False) -> Canvas:
        place = tuple(slice(a * self.size // SIZE, b * self.size // SIZE) for a, b in ((top, bottom), (left, right)))
        self.label[place] = kind
        self.last += thing
        self.instance[place] = self.last if thing else 0
        return self

    def text(self, key: str = "k", time: str | None = None, instances: bool = True) -> str:
        facts = measure(self.label, self.instance if instances else None, len(NAMES), IGNORE)
        return describe(facts, NAMES, time, key)[0]


def street(size: int = SIZE) -> Canvas:
    """Buildings on both sides up to the top, a road below, pavement on the right."""
    canvas = Canvas(SKY, size)
    canvas.box(BUILDING, 4, 64, 0, 32, True).box(BUILDING, 4, 64, 64, 96, True)
    return canvas.box(ROAD, 64, 96, 0, 72).box(PAVEMENT, 64, 96, 72, 96)


def every_wording(canvas: Canvas, **more: Any) -> list[str]:
    return [canvas.text(key=f"key-{number}", **more) for number in range(40)]


def test_a_street_is_described_with_its_parts_and_places() -> None:
    canvas = street().box(CAR, 66, 72, 40, 50, True).box(CAR, 68, 74, 52, 62, True)
    canvas.box(PERSON, 60, 80, 84, 88, True)
    for text in every_wording(canvas, time="dusk"):
        assert re.match(r"(A street|A street scene|A view of a street) at dusk: ", text)
        assert re.search(r"tall buildings on both sides (fill|take up|cover) a good part of the view", text)
        assert "with a road from the left to the centre" in text
        assert "two cars on the road in the centre" in text.lower()
        assert "a person on the pavement on the right" in text
        assert re.search(r"sky", text)


@pytest.mark.parametrize("size", [32, 64, 96, 200, 480])
def test_the_size_of_the_map_does_not_matter(size: int) -> None:
    def with_cars(size: int) -> Canvas:
        return street(size).box(CAR, 66, 72, 39, 48, True).box(CAR, 69, 75, 51, 60, True)

    assert with_cars(size).text() == with_cars(SIZE).text()


def test_counts_come_from_instances_and_are_not_claimed_without_them() -> None:
    canvas = street()
    for left in (2, 10, 18, 26):
        canvas.box(CAR, 70, 76, left, left + 6, True)
    assert "four cars on the road on the left" in canvas.text()
    plain = canvas.text(instances=False)
    assert "four" not in plain and re.search(r"[Cc]ars on the left", plain)
    single = street().box(CAR, 70, 76, 2, 26)
    assert re.search(r"[Aa]t least one car on the left", single.text(instances=False))


def test_an_instance_counts_for_the_class_that_most_of_it_has() -> None:
    canvas = street()
    canvas.label[20:30, 5:12] = WINDOW  # the building's instance goes on behind its window
    assert "window" not in canvas.text()
    canvas.box(TREE, 30, 70, 40, 50, True)
    canvas.label[60:70, 44:46] = ROAD
    assert re.search(r"a tree .*in the centre", canvas.text())


def test_how_much_is_said_in_words_that_fit() -> None:
    for share, phrase in (
        (16, "part of"),
        (30, "a good part of"),
        (48, "about half of"),
        (70, "most of"),
        (94, "nearly all of"),
    ):
        canvas = Canvas(SKY).box(TREE, 96 - share, 96, 0, 96)
        text = canvas.text(instances=False)
        assert re.search(rf"greenery from side to side (fills|takes up|covers) {phrase} the view", text), text


@pytest.mark.parametrize(
    ("boxes", "where"),
    [
        ([(0, 24)], "on the left"),
        ([(72, 96)], "on the right"),
        ([(36, 60)], "in the centre"),
        ([(0, 20), (76, 96)], "on both sides"),
        ([(0, 60)], "from the left to the centre"),
        ([(36, 96)], "from the centre to the right"),
        ([(0, 96)], "from side to side"),
    ],
)
def test_where_something_is(boxes: list[tuple[int, int]], where: str) -> None:
    canvas = Canvas(SKY)
    for left, right in boxes:
        canvas.box(TREE, 50, 96, left, right)
    assert f"greenery {where} " in canvas.text(instances=False)


def test_near_and_far_things_are_told_apart() -> None:
    near = street().box(CAR, 60, 94, 5, 40, True)
    assert "a car on the left, close by" in near.text().replace(" on the road", "")
    far = street().box(PERSON, 62, 66, 36, 37, True).box(PERSON, 62, 66, 40, 41, True)
    assert "in the distance" in far.text()


def test_the_ignore_id_and_ids_beyond_the_classes_are_not_there() -> None:
    canvas = street()
    canvas.label[:, 40:] = IGNORE
    assert canvas.text() == canvas.text()
    assert "pavement" not in canvas.text()
    assert re.search(
        r"tall buildings? (.* )?(fills?|takes? up|covers?) (about half|a good part|most) of the view", canvas.text()
    )
    empty = Canvas(IGNORE)
    assert empty.text() == "A view."


def test_unknown_classes_are_named_without_claims_of_grammar() -> None:
    text = Canvas(SKY).box(ODD, 40, 96, 0, 96).text()
    assert "an area of glow worm nest" in text


def test_the_key_chooses_the_words_and_nothing_else_does() -> None:
    canvas = street().box(CAR, 66, 72, 40, 50, True)
    texts = every_wording(canvas, time="day")
    assert texts == every_wording(canvas, time="day")
    assert len(set(texts)) > 10


def test_captions_of_generated_streets_are_sentences() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    for index in range(12):
        made = scene(seed, index, 64, 64)
        facts = measure(made.label, made.instance, len(CLASSES), None)
        text, first = describe(facts, CLASSES, made.time, f"{seed}-{index}")
        assert text.startswith(first) and first.endswith(".")
        assert not re.search(r"[0-9%_]|  | [.,;:]|\.\.|\b(a|an) [aeiou]?(\w+ )?(people|cars|trees|grass)\b", text), text
        assert not re.search(r"\ba [aeio]\w|\ban [^aeiouh]", text), text
        assert all(re.match(r"[A-Z].*\w\.$", sentence) for sentence in re.findall(r"[^.]+\.", text.replace(". ", ".")))
        assert len(text.split()) <= 110, text


def test_articles_plurals_and_counts() -> None:
    nouns = ("car", "bus", "person", "bench", "balcony", "tree", "traffic light", "policeman", "day", "street light")
    assert [plural(noun) for noun in nouns] == [
        *("cars", "buses", "people", "benches", "balconies", "trees", "traffic lights", "policemen", "days"),
        "street lights",
    ]
    for noun in ("umbrella", "area", "hour", "unimportant sign", "arch"):
        assert article(noun) == "an", noun
    for noun in ("car", "university", "unit", "house", "one-way street", "European flag", "utility pole", "user"):
        assert article(noun) == "a", noun
    person = look_up("Person")
    assert [counted(n, person) for n in (1, 2, 12, 13)] == [
        "a person",
        "two people",
        "twelve people",
        "more than a dozen people",
    ]
    assert look_up("traffic_sign").many == "traffic signs" == look_up("Traffic-Sign").many
    assert look_up("sidewalk").one == "pavement"


def test_shares_count_every_labelled_pixel() -> None:
    label = np.array([[0, 0, 1, 11], [2, 2, 2, 200]], dtype=np.uint8)
    assert shares(label, 3, IGNORE) == [round(2 / 6, 6), round(1 / 6, 6), 0.5]
    assert shares(label, 3, 2) == [round(2 / 3, 6), round(1 / 3, 6), 0.0], "the ignore id is a class's own"
    assert shares(np.full((2, 2), IGNORE, np.uint8), 3, IGNORE) == [None, None, None]


def test_names_of_shares_can_be_told_apart() -> None:
    assert share_names(["road", "traffic light", "a b", "a-b"]) == [
        "share.road",
        "share.traffic_light",
        "share.a_b_2",
        "share.a_b_3",
    ]


def test_the_index_has_the_text_and_the_shares(tmp_path: Path) -> None:
    dataset = write_base(tmp_path / "streets", street_rows(3), 2, STREET)
    stage = make_stage("caption", {"captioner": "labels"})
    found = read_column(run_stage(stage, dataset))
    for fields, scalars, tombstone in found.values():
        assert tombstone is None
        assert scalars["text"].encode() == fields["text"]
        assert scalars["short"] and scalars["captioner"] == "labels"
        assert sum(scalars[name] for name in share_names(STREET)) == pytest.approx(1, abs=1e-4)
