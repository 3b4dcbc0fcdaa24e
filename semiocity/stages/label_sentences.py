"""Facts about a label map in English. Equal facts and keys give equal words; other keys give other turns of phrase."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from semiocity.stages.label_facts import Facts, Group, Region, Side
from semiocity.stages.words import WORDS, Word, article, counted, look_up

STREET = {"road", "street", "lane"}
ROAMS = {"person", "pedestrian", "rider", "cyclist", "dog", "animal"} | {
    "car", "truck", "bus", "van", "train", "tram", "motorcycle", "bicycle", "boat"
}  # fmt: skip
"""Of these it is worth saying what they stand on."""
TALL = 0.85
"""Buildings that reach this share of the picture's height are called tall."""


class Speech:
    """Choices between turns of phrase, keyed by a row's key: choice n depends on nothing but the key and its slot."""

    def __init__(self, key: str) -> None:
        self.key = key

    def pick(self, slot: str, options: Sequence[str]) -> str:
        spread = hashlib.sha256(f"{self.key}\0{slot}".encode()).digest()
        return options[int.from_bytes(spread[:4], "big") % len(options)]


def describe(facts: Facts, classes: Sequence[str], time: str | None, key: str) -> tuple[str, str]:
    """(caption, its first sentence). `time` is a time of day, such as "dusk"; None when it is not known."""
    words = [look_up(name) for name in classes]
    speech = Speech(key)
    first = _scene(facts, words, time, speech)
    rest = [_things(facts, words, speech), _surroundings(facts, words, speech), _sky(facts, words, speech)]
    return " ".join([first, *(sentence for sentence in rest if sentence)]), first


# ---------------------------------------------------------------- sentences


def _scene(facts: Facts, words: list[Word], time: str | None, speech: Speech) -> str:
    """What the picture shows as a whole: the kind of place, the time, and what fills most of it."""
    by_kind = _shares(facts, words)
    roads = [r for r in facts.regions if words[r.id].one in STREET]
    if roads and sum(r.share for r in roads) >= 0.03:
        place = speech.pick("place", ("A street", "A street scene", "A view of a street"))
    elif by_kind["built"] + by_kind["part"] >= 0.3:
        place = speech.pick("place", ("A built-up place", "An urban view", "A view of buildings"))
    elif by_kind["green"] >= 0.3:
        place = speech.pick("place", ("A green place", "A view with much greenery"))
    elif by_kind["water"] >= 0.3:
        place = speech.pick("place", ("A waterside view", "A view over water"))
    else:
        place = "A view"
    main = _main(facts, words)
    filling = [_filling(region, facts, words, speech) for region in main if words[region.id].kind != "ground"]
    grounds = [_ground(region, words) for region in main if words[region.id].kind == "ground"]
    head = f"{place}{_when(time, speech)}"
    if filling and grounds:
        return f"{head}: {_join(filling)}, with {_join(grounds)}."
    if filling:
        return f"{head}: {_join(filling)}."
    return f"{head} with {_join(grounds)}." if grounds else f"{head}."


def _things(facts: Facts, words: list[Word], speech: Speech) -> str:
    """What comes one by one: counts from instances, or plain plurals where there are none."""
    counted_ids = {group.id for group in facts.groups}
    phrases = [_group(g, words) for g in facts.groups if words[g.id].kind in ("thing", "other")]
    for region in facts.regions:
        word = words[region.id]
        if region.id not in counted_ids and word.kind == "thing":
            some = f"at least one {word.one}" if region.pieces <= 1 else word.many
            phrases.append(f"{some} {_where(region.side)}")
    if not phrases:
        return ""
    phrases = phrases[:4]
    plain = _join(phrases)
    verb = "is" if _is_single(phrases[0]) else "are"
    options = (f"There {verb} {plain}.", f"{_capital(plain)} can be seen.", f"One sees {plain}.")
    return speech.pick("things", options)


def _surroundings(facts: Facts, words: list[Word], speech: Speech) -> str:
    """Plants, ground and water that the first sentence does not name."""
    named = {region.id for region in _main(facts, words)}
    phrases = []
    groups = {group.id: group for group in facts.groups}
    for region in facts.regions:
        word = words[region.id]
        if region.id in named or word.kind not in ("green", "ground", "water"):
            continue
        group = groups.get(region.id)
        side = region.side if group is None else group.side
        phrases.append(f"{_some(region, group, word)} {_where(side, spread=group is not None)}")
    if not phrases:
        return ""
    plain = _join(phrases[:3])
    verb = "is" if _is_single(phrases[0]) else "are"
    return speech.pick("around", (f"There {verb} also {plain}.", f"Around it: {plain}.", f"One also sees {plain}."))


def _sky(facts: Facts, words: list[Word], speech: Speech) -> str:
    share = _shares(facts, words)["sky"]
    if share >= 0.3:
        return speech.pick("sky", ("The sky is wide open above.", "Above is a wide, open sky."))
    if share >= 0.08:
        return speech.pick("sky", ("The sky shows above.", "Part of the sky is visible above."))
    if share > 0:
        return speech.pick("sky", ("Little of the sky is visible.", "Only a strip of sky is left."))
    return ""


# ---------------------------------------------------------------- phrases


def _main(facts: Facts, words: list[Word]) -> list[Region]:
    """At most two large regions, each at least a twelfth of the picture, that are neither sky nor parts nor things."""
    large = [region for region in facts.regions if region.share >= 0.08]
    known = [region for region in large if words[region.id].kind in ("built", "green", "ground", "water")]
    other = [region for region in large if words[region.id].kind == "other"]
    return (known + other)[:2]


def _filling(region: Region, facts: Facts, words: list[Word], speech: Speech) -> str:
    """ "tall buildings on both sides fill about half of the view"."""
    word = words[region.id]
    share = region.share
    group = next((g for g in facts.groups if g.id == region.id), None)
    many = group.count > 1 if group is not None else word.kind == "built"
    subject = _some(region, group, word)
    if word.kind == "built":
        # Windows and doors are part of what they are set in.
        share += sum(r.share for r in facts.regions if words[r.id].kind == "part")
        tall = "tall " if region.top >= TALL else ""
        subject = f"{tall}{word.many}" if many else f"{article(tall + word.one)} {tall}{word.one}"
    verb = speech.pick("fill", ("fill", "take up", "cover"))
    if not many:
        verb = verb.replace("fill", "fills").replace("take", "takes").replace("cover", "covers")
    return f"{subject} {_where(region.side)} {verb} {_amount(share)}"


def _ground(region: Region, words: list[Word]) -> str:
    """ "a broad road in the centre"."""
    word = words[region.id]
    broad = "broad " if region.share >= 0.25 else ""
    if word.mass:
        return f"{word.one} {_where(region.side)}"
    return f"{article(broad + word.one)} {broad}{word.one} {_where(region.side)}"


def _group(group: Group, words: list[Word]) -> str:
    """ "two cars on the road on the right, one close by"."""
    word = words[group.id]
    parts = [counted(group.count, word)]
    ground = words[group.on] if group.on is not None else None
    if ground is not None and word.one in ROAMS and ground.kind in ("ground", "green"):
        parts.append(f"on {ground.one}" if ground.mass else f"on the {ground.one}")
    parts.append("one on each side" if group.side == "both" and group.count == 2 else _where(group.side, spread=True))
    if group.depth == "far":
        parts.append("in the distance")
    text = " ".join(parts).replace(" one on each side", ", one on each side")
    if group.depth == "near":
        near = "close by" if group.count == 1 else "one close by" if group.count == 2 else "some close by"
        text = f"{text}, {near}"
    return text


def _some(region: Region, group: Group | None, word: Word) -> str:
    """A region by name, with its count where that is known: "a road", "grass", "three trees", "an area of gravel"."""
    if word.kind == "other" and group is None:
        return f"an area of {word.one}"
    if word.mass:
        return word.one
    if group is not None:
        row = group.count >= 3 and group.side in ("left", "right")
        return f"a row of {word.many}" if row and word.one == "tree" else counted(group.count, word)
    if word.kind == "green":  # how many plants there are cannot be told from their outline
        return "greenery"
    return f"{article(word.one)} {word.one}"


def _amount(share: float) -> str:
    for least, phrase in (
        (0.9, "nearly all of the view"),
        (0.6, "most of the view"),
        (0.42, "about half of the view"),
        (0.25, "a good part of the view"),
        (0.12, "part of the view"),
    ):
        if share >= least:
            return phrase
    return "a small part of the view"


def _where(side: Side, spread: bool = False) -> str:
    """Where; `spread` is for several things apart from each other."""
    match side:
        case "left" | "right":
            return f"on the {side}"
        case "centre":
            return "in the centre"
        case "both":
            return "on both sides"
        case "left half":
            return "on the left and in the centre" if spread else "from the left to the centre"
        case "right half":
            return "in the centre and on the right" if spread else "from the centre to the right"
        case "across":
            return "here and there" if spread else "from side to side"


def _when(time: str | None, speech: Speech) -> str:
    match time:
        case None | "":
            return ""
        case "day":
            return speech.pick("day", (" by day", " in daylight", " in the daytime"))
        case "night":
            return speech.pick("night", (" at night", " by night"))
        case "dawn" | "dusk" | "noon":
            return f" at {time}"
        case "morning" | "afternoon" | "evening":
            return f" in the {time}"
        case _:
            return f" ({time})"


def _shares(facts: Facts, words: list[Word]) -> dict[str, float]:
    shares = dict.fromkeys(("sky", "ground", "built", "part", "green", "thing", "water", "other"), 0.0)
    for region in facts.regions:
        shares[words[region.id].kind] += region.share
    return shares


def _join(phrases: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"; semicolons where a phrase has a comma of its own."""
    if len(phrases) < 2:
        return "".join(phrases)
    if any("," in phrase for phrase in phrases[:-1]):
        return "; ".join(phrases[:-1]) + f"; and {phrases[-1]}"
    return ", ".join(phrases[:-1]) + f" and {phrases[-1]}"


def _is_single(phrase: str) -> bool:
    return phrase.startswith(("a ", "an ", "at least one ", *(f"{word.one} " for word in WORDS.values() if word.mass)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
