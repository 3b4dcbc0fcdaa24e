"""Keys are safe as member names, never collide, and names in any encoding survive."""

from __future__ import annotations

import json

from make_images import dice

from semiocity.data.keys import KEY, fraction_of, key_of, printable, slug, to_bytes, to_text

NAMES = {
    "Plain": "plain",
    "v1.2 (final).tar": "v1-2-final-tar",
    "Straße": "strae",  # ß has no decomposition
    "Çağlar Üst": "caglar-ust",
    "東京": "unnamed",
    "..": "unnamed",
    "a\nb'c\"d": "a-b-c-d",
    "under_score-dash": "under_score-dash",
    "x" * 200: "x" * 48,
}


def test_slugs() -> None:
    assert {name: slug(name) for name in NAMES} == NAMES


def test_any_name_makes_a_key_that_readers_of_tars_can_split() -> None:
    random = dice()
    for _ in range(300):
        raw = bytes(random.choices(range(1, 256), k=random.randrange(1, 60))).replace(b"/", b"")
        key = key_of(to_text(b"dir/" + raw))
        assert KEY.fullmatch(key), raw
        assert "." not in key


def test_names_in_any_encoding_survive_json() -> None:
    random = dice()
    for _ in range(300):
        raw = bytes(random.choices(range(256), k=random.randrange(60)))
        text = to_text(raw)
        assert to_bytes(json.loads(json.dumps(text))) == raw
        assert printable(text).isprintable()


def test_a_key_depends_on_the_whole_path() -> None:
    assert key_of("a/one") != key_of("b/one")
    assert key_of("a/one").endswith("-one")
    # Fixed for good: packed data depend on it.
    assert key_of("train/0001TP_006690") == "bf8ca367bf-0001tp_006690"


def test_fractions_are_even_and_independent_of_the_purpose() -> None:
    ids = [f"row {i}" for i in range(4000)]
    share = sum(fraction_of(id, "split") < 0.1 for id in ids) / len(ids)
    assert 0.08 < share < 0.12
    both = sum(fraction_of(id, "split") < 0.1 and fraction_of(id, "other") < 0.1 for id in ids) / len(ids)
    assert both < 0.03
