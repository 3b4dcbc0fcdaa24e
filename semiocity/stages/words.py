"""English for class names: what kind of thing a class is, its plural, its article, and small counts in words."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["sky", "ground", "built", "part", "green", "thing", "water", "other"]
"""sky; ground one stands on; built: walls of the scene; part: belongs to what is built (windows); green: plants;
thing: comes one by one; water; other: nothing is known of it."""


class Word(NamedTuple):
    """How to speak of a class."""

    one: str
    many: str
    kind: Kind
    mass: bool
    """Has no plural and takes no "a": grass, water."""


def _count(one: str, kind: Kind, many: str = "") -> Word:
    return Word(one, many or plural(one), kind, mass=False)


def _mass(name: str, kind: Kind) -> Word:
    return Word(name, name, kind, mass=True)


def plural(noun: str) -> str:
    """The plural of a noun phrase; the last word is inflected."""
    head, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif last.endswith("man"):
        last = last[:-3] + "men"
    else:
        last += "s"
    return f"{head} {last}".strip()


IRREGULAR = {
    "person": "people",
    "child": "children",
    "bus": "buses",
    "leaf": "leaves",
    "shelf": "shelves",
    "foot": "feet",
    "sheep": "sheep",
    "stairs": "stairs",
    "scaffolding": "scaffolding",
    "furniture": "furniture",
}


def article(noun: str) -> str:
    """ "a" or "an", by how the word sounds."""
    word = noun.lower()
    if re.match(r"(hour|honest|honou?r|heir)", word):
        return "an"
    if re.match(r"(uni([^nm]|$)|u[sr][aeiou]|util|ufo|eu|one\b|once)", word):
        return "a"
    return "an" if word[:1] in "aeiou" else "a"


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def counted(number: int, word: Word) -> str:
    """ "a car", "two cars", "more than a dozen cars"."""
    if number == 1:
        return f"{article(word.one)} {word.one}"
    if number < len(NUMBERS):
        return f"{NUMBERS[number]} {word.many}"
    return f"more than a dozen {word.many}"


def look_up(name: str) -> Word:
    """The word for a class name, in any spelling (`Traffic_Sign`, `traffic-sign`). Unknown names are kind `other`."""
    plain = re.sub(r"[\s_-]+", " ", name).strip().lower()
    known = WORDS.get(plain)
    return known or Word(plain, plural(plain), "other", mass=False)


WORDS: dict[str, Word] = {
    "sky": _mass("sky", "sky"),
    # Ground.
    "road": _count("road", "ground"),
    "street": _count("street", "ground"),
    "lane": _count("lane", "ground"),
    "lane marking": _count("lane marking", "ground"),
    "pavement": _count("pavement", "ground"),
    "sidewalk": _count("pavement", "ground"),
    "crossing": _count("pedestrian crossing", "ground"),
    "crosswalk": _count("pedestrian crossing", "ground"),
    "parking": _count("parking area", "ground"),
    "square": _count("square", "ground"),
    "plaza": _count("plaza", "ground"),
    "path": _count("path", "ground"),
    "rail track": _count("rail track", "ground"),
    "ground": _mass("bare ground", "ground"),
    "earth": _mass("bare earth", "ground"),
    "sand": _mass("sand", "ground"),
    "snow": _mass("snow", "ground"),
    "grass": _mass("grass", "green"),
    "lawn": _count("lawn", "green"),
    "terrain": _mass("open ground", "green"),
    # Built.
    "building": _count("building", "built"),
    "house": _count("house", "built"),
    "skyscraper": _count("skyscraper", "built"),
    "tower": _count("tower", "built"),
    "wall": _count("wall", "built"),
    "facade": _count("facade", "built"),
    "bridge": _count("bridge", "built"),
    "tunnel": _count("tunnel", "built"),
    "window": _count("window", "part"),
    "door": _count("door", "part"),
    "roof": _count("roof", "part"),
    "balcony": _count("balcony", "part"),
    "column": _count("column", "part"),
    "stairs": Word("staircase", "stairs", "part", mass=False),
    "shop": _count("shop front", "part"),
    # Green and water.
    "tree": _count("tree", "green"),
    "vegetation": _mass("greenery", "green"),
    "plant": _count("plant", "green"),
    "bush": _count("bush", "green"),
    "hedge": _count("hedge", "green"),
    "flower": _count("flower", "green"),
    "water": _mass("water", "water"),
    "river": _count("river", "water"),
    "sea": _mass("sea", "water"),
    "fountain": _count("fountain", "thing"),
    # Things.
    "person": _count("person", "thing"),
    "pedestrian": _count("pedestrian", "thing"),
    "rider": _count("rider", "thing"),
    "bicyclist": _count("cyclist", "thing"),
    "cyclist": _count("cyclist", "thing"),
    "car": _count("car", "thing"),
    "truck": _count("truck", "thing"),
    "bus": _count("bus", "thing"),
    "van": _count("van", "thing"),
    "train": _count("train", "thing"),
    "tram": _count("tram", "thing"),
    "motorcycle": _count("motorcycle", "thing"),
    "bicycle": _count("bicycle", "thing"),
    "boat": _count("boat", "thing"),
    "animal": _count("animal", "thing"),
    "dog": _count("dog", "thing"),
    "bench": _count("bench", "thing"),
    "pole": _count("pole", "thing"),
    "street light": _count("street light", "thing"),
    "traffic light": _count("traffic light", "thing"),
    "traffic sign": _count("traffic sign", "thing"),
    "sign": _count("sign", "thing"),
    "sign symbol": _count("sign", "thing"),
    "signsymbol": _count("sign", "thing"),
    "billboard": _count("billboard", "thing"),
    "fence": _count("fence", "thing"),
    "guard rail": _count("guard rail", "thing"),
    "bin": _count("bin", "thing"),
}
