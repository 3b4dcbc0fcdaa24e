"""Clusters of pictures: the stated rule, by a plain reading of it, and what users rely on."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from make_images import dice

from semiocity.data.duplicates import FLAT_STEP, Clusters, Limits, Rows, cluster, levels
from semiocity.errors import Stopped

LIMITS = Limits(distance=6, gradients=8, flat=2.0)
DETAILED, FLAT = 40.0, 0.5


def rows(count: int, **given: Any) -> Rows:
    """Rows without anything in common, but for what is given."""
    random = np.random.default_rng(5)
    plain = {
        "keys": np.array([b"%06d-row" % i for i in range(count)]),
        "pixels": np.stack([np.arange(count), np.arange(count)], axis=1).astype(np.uint64),
        "phash": random.integers(0, 2**64, count, dtype=np.uint64),
        "gradients": np.zeros(count, np.uint64),
        "detail": np.full(count, DETAILED),
        "colour": np.zeros((count, 4)),
        "area": np.full(count, 100),
        "level": np.zeros(count, np.int16),
    }
    return Rows(**{**plain, **{name: np.asarray(value) for name, value in given.items()}})


def random_rows(random: np.random.Generator, count: int) -> Rows:
    """Rows of three levels with much in common: equal pixels, near hashes in chains, flat pictures."""

    def noisy(values: np.ndarray) -> np.ndarray:
        for _ in range(8):
            bit = np.uint64(1) << random.integers(0, 64, count, dtype=np.uint64)
            values = np.where(random.random(count) < 0.5, values ^ bit, values)
        return values

    centres = random.integers(0, count // 6 + 1, count)
    hashes = random.integers(0, 2**64, (2, count // 6 + 1), dtype=np.uint64)
    made = {
        "pixels": random.integers(0, 2**60, (count, 2), dtype=np.uint64),
        "phash": noisy(hashes[0][centres]),
        "gradients": noisy(hashes[1][centres]),
        "detail": np.where(random.random(count) < 0.25, FLAT, DETAILED),
        "colour": random.uniform(0, 12, (count, 4)),
        "area": random.integers(1, 4, count) * 100,
    }
    for i in np.flatnonzero(random.random(count) < 0.2):
        other = random.integers(count)
        for values in made.values():
            values[i] = values[other]
    return rows(count, **made, level=random.integers(0, 3, count).astype(np.int16))


def near(given: Rows, i: Any, j: Any) -> bool:
    flat = given.detail < LIMITS.flat
    if flat[i] != flat[j]:
        return False
    if flat[i]:
        return bool((np.abs(np.rint(given.colour[i]) - np.rint(given.colour[j])) <= FLAT_STEP).all())
    bits = [int(values[i] ^ values[j]).bit_count() for values in (given.phash, given.gradients)]
    return bits[0] <= LIMITS.distance and bits[1] <= LIMITS.gradients


def apart(given: Rows, i: Any, j: Any) -> int:
    if given.detail[i] < LIMITS.flat:
        return int(np.abs(np.rint(given.colour[i]) - np.rint(given.colour[j])).max())
    return int(given.phash[i] ^ given.phash[j]).bit_count()


def plain_reading(given: Rows) -> list[int]:
    """The representative of each row, by the rule as it is written in duplicates.py, one picture after the other."""
    rank = sorted(range(len(given)), key=lambda i: (given.level[i], -given.area[i], given.keys[i]))
    speaker: dict[bytes, int] = {}
    for i in rank:
        speaker.setdefault(given.pixels[i].tobytes(), i)
    pictures = [i for i in rank if speaker[given.pixels[i].tobytes()] == i]
    place = {i: number for number, i in enumerate(pictures)}
    leader: dict[int, int] = {}
    for level in sorted(set(given.level.tolist())):
        ours = [i for i in pictures if given.level[i] == level]
        for i in ours:
            higher = [j for j in pictures if given.level[j] < level and near(given, i, j)]
            if higher:
                best = min(higher, key=lambda j: (given.level[leader[j]], apart(given, i, j), place[j]))
                leader[i] = leader[best]
        for i in ours:
            if i not in leader:
                leader.update({j: i for j in ours if j not in leader and near(given, i, j)})
                leader[i] = i
    return [leader[speaker[given.pixels[i].tobytes()]] for i in range(len(given))]


@pytest.mark.parametrize("crowd", [64, 3])
def test_clusters_are_those_of_the_rule(crowd: int) -> None:
    seed = dice().randrange(2**32)
    for number in range(4):
        given = random_rows(np.random.default_rng(seed + number), 160)
        found = cluster(given, LIMITS, threads=2, crowd=crowd)
        assert found.representative.tolist() == plain_reading(given), seed + number
        for i in range(len(given)):
            kept = found.representative[i]
            same = np.flatnonzero(found.representative == kept)
            assert found.size[i] == len(same)
            assert set(found.cluster[same]) == {found.cluster[i]}
            assert found.exact[i] == (given.pixels[i] == given.pixels[kept]).all()
        assert len(set(found.cluster)) == len(set(found.representative))


def test_what_evaluation_relies_on() -> None:
    """No kept row of one split is near a kept row of another, and none that stays in training near one held out."""
    given = random_rows(np.random.default_rng(dice().randrange(2**32)), 250)
    found = cluster(given, LIMITS)
    level = given.level[found.representative]
    kept = np.flatnonzero(found.representative == np.arange(len(given)))
    assert (level[kept] == given.level[kept]).all(), "a kept row stays in its split"
    assert not [(i, j) for i in kept for j in kept if level[i] < level[j] and near(given, i, j)]
    training = np.flatnonzero(level == 2)
    assert not [(i, j) for i in training for j in np.flatnonzero(given.level < 2) if near(given, i, j)]
    assert len({(number, split) for number, split in zip(found.cluster, level)}) == len(set(found.cluster))


def test_one_row_more_or_less_leaves_most_clusters_their_ids() -> None:
    random = np.random.default_rng(dice().randrange(2**32))
    given = random_rows(random, 150)
    found = cluster(given, LIMITS)
    some = np.sort(random.permutation(150)[:149])
    fewer = cluster(Rows(**{f.name: getattr(given, f.name)[some] for f in fields(Rows)}), LIMITS)
    ids = dict(zip(given.keys.tolist(), found.cluster.tolist()))
    changed = [key for key, name in zip(given.keys[some].tolist(), fewer.cluster.tolist()) if ids[key] != name]
    left_out = ids[(set(given.keys.tolist()) - set(given.keys[some].tolist())).pop()]
    assert len(changed) <= 12, "only what lies around the row that was left out"
    untouched = [key for key in given.keys[some].tolist() if ids[key] != left_out and key not in changed]
    assert len(untouched) > 100


def test_a_chain_is_not_one_cluster() -> None:
    """Each picture is near the next; the first and the last have nothing in common."""
    hashes = [sum(1 << bit for bit in range(4 * step)) for step in range(16)]
    found = cluster(rows(16, phash=np.array(hashes, dtype=np.uint64)), LIMITS)
    assert (found.distance <= LIMITS.distance).all()
    assert sorted(np.unique(found.size).tolist()) == [2]


def test_flat_pictures_are_like_by_colour_only() -> None:
    """Their hashes are noise: neither does an equal hash unite them, nor a different one part them."""
    colour = np.array([[0, 0, 0, 0], [1, 1, 0, 1], [4, 0, 0, 0], [200, 220, 250, 1], [0, 0, 0, 0]], dtype=float)
    phash = np.array([1, 2**63, 1, 1, 1], dtype=np.uint64)
    detail = np.array([FLAT, FLAT, FLAT, FLAT, DETAILED])
    found = cluster(rows(5, colour=colour, phash=phash, detail=detail), LIMITS)
    assert found.representative.tolist() == [0, 0, 2, 3, 4]
    assert found.distance.tolist() == [0, -1, 0, 0, 0]


def test_both_hashes_must_be_near() -> None:
    gradients = np.array([0, 2**9 - 1, 2**8 - 1], dtype=np.uint64)
    found = cluster(rows(3, phash=np.zeros(3, np.uint64), gradients=gradients), LIMITS)
    assert found.representative.tolist() == [0, 1, 0]


def test_equal_pixels_are_exact_whatever_else_is_said() -> None:
    same = np.zeros((3, 2), np.uint64)
    found = cluster(rows(3, pixels=same, detail=np.full(3, FLAT), level=np.array([1, 0, 1], np.int16)), LIMITS)
    assert found.representative.tolist() == [1, 1, 1]
    assert found.exact.all() and (found.distance == 0).all() and (found.size == 3).all()


def test_the_largest_of_the_most_protected_split_is_kept() -> None:
    level, area = np.array([1, 0, 0, 0], np.int16), np.array([900, 100, 400, 400])
    found = cluster(rows(4, phash=np.zeros(4, np.uint64), level=level, area=area), LIMITS)
    assert found.representative.tolist() == [2, 2, 2, 2]


def test_a_ball_of_many_different_hashes_costs_little() -> None:
    """30,000 hashes around one: half a billion near pairs, which nobody lists."""
    random = np.random.default_rng(dice().randrange(2**32))
    ball = np.full(30_000, 77, np.uint64)
    for _ in range(4):
        ball ^= np.uint64(1) << random.integers(0, 64, len(ball), dtype=np.uint64)
    found = cluster(rows(30_000, phash=ball, gradients=ball), LIMITS)
    assert found.size.max() > 100
    assert (found.distance <= LIMITS.distance).all()


def test_a_stop_ends_it_with_nothing_decided() -> None:
    given = rows(300, phash=np.arange(300, dtype=np.uint64))
    with pytest.raises(Stopped):
        cluster(given, LIMITS, stop=lambda: True)


def test_nothing_at_all() -> None:
    found = cluster(rows(0), LIMITS)
    assert all(len(getattr(found, field.name)) == 0 for field in fields(Clusters))


def test_ids_follow_the_smallest_key() -> None:
    given = rows(4, phash=np.zeros(4, np.uint64))
    before = cluster(given, LIMITS).cluster[0]
    later = replace(given, keys=np.array([b"000000-row", b"000001-new", b"000002-x", b"9-y"]))
    assert set(cluster(later, LIMITS).cluster) == {before}
    earlier = replace(given, keys=np.array([b"0-first", b"000000-row", b"000002-x", b"9-y"]))
    assert before not in cluster(earlier, LIMITS).cluster


def test_levels_of_splits() -> None:
    assert levels(["train", "val", None, "test", "extra"], ("test", "val")).tolist() == [2, 1, 2, 0, 2]
