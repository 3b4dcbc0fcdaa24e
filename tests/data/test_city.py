"""The generated streets: the same bytes everywhere, the same street at every size, every class worth learning."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from semiocity.data.sources.city import CLASSES, PALETTE, Scene, scene
from semiocity.data.sources.city_layout import Building, Kind, Thing
from semiocity.data.sources.city_streets import layout
from semiocity.errors import UserError

THINGS = {"building", "tree", "car", "person", "pole"}
# The least share of scenes with at least 8 pixels of a class at 64x64, and the least share of all pixels.
EXPECTED = {
    "sky": (0.9, 0.1),
    "building": (0.98, 0.1),
    "window": (0.95, 0.05),
    "door": (0.9, 0.01),
    "tree": (0.8, 0.05),
    "road": (0.98, 0.1),
    "pavement": (0.9, 0.02),
    "car": (0.7, 0.02),
    "person": (0.85, 0.008),
    "pole": (0.7, 0.01),
    "crossing": (0.4, 0.02),
    "grass": (0.6, 0.01),
}


def digest(made: Scene) -> str:
    parts = (made.image.tobytes(), made.label.tobytes(), made.instance.tobytes(), made.time.encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def small() -> list[Scene]:
    return [scene(5, index, 64, 64) for index in range(200)]


def test_a_scene_depends_on_its_arguments_alone() -> None:
    first = digest(scene(3, 17, 96, 64))
    scene(3, 18, 96, 64)
    scene(4, 17, 32, 32)
    assert digest(scene(3, 17, 96, 64)) == first
    assert len({digest(scene(seed, index, 32, 32)) for seed in (0, 1, 2**64 - 1) for index in (0, 1, 2**40)}) == 9


def test_another_process_makes_the_same_bytes() -> None:
    keys = [(3, 0, 64, 64), (3, 1, 480, 360), (2**40, 2, 256, 256)]
    code = (
        "import hashlib, sys\n"
        "from semiocity.data.sources.city import scene\n"
        f"for key in {keys}:\n"
        "    s = scene(*key)\n"
        "    parts = s.image.tobytes(), s.label.tobytes(), s.instance.tobytes(), s.time.encode()\n"
        "    print(hashlib.sha256(b''.join(parts)).hexdigest())\n"
        "assert 'torch' not in sys.modules\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [digest(scene(*key)) for key in keys]


@pytest.mark.parametrize(
    ("width", "height"), [(32, 32), (64, 64), (64, 96), (480, 360), (512, 256), (32, 1024), (1024, 32), (1024, 1024)]
)
def test_any_size(width: int, height: int) -> None:
    made = scene(1, 2, width, height)
    assert made.image.shape == (height, width, 3)
    assert made.image.dtype == np.uint8
    assert made.label.shape == made.instance.shape == (height, width)
    assert (made.label.dtype, made.instance.dtype) == (np.uint8, np.uint16)
    assert made.label.max() < len(CLASSES)
    assert len(np.unique(made.label)) >= 3


@pytest.mark.parametrize("size", [(0, 64), (24, 64), (64, 60), (64, 1032)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="multiple of 8 from 32 to 1024"):
        scene(0, 0, *size)


@pytest.mark.parametrize("key", [(-1, 0), (0, -1), (2**64, 0)])
def test_keys_beyond_64_bits_are_refused(key: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="whole number"):
        scene(*key, 64, 64)


def test_every_class_is_frequent_and_large_enough(small: list[Scene]) -> None:
    labels = np.stack([made.label.ravel() for made in small])
    assert set(EXPECTED) == set(CLASSES)
    for number, name in enumerate(CLASSES):
        of_class = labels == number
        scenes, pixels = (of_class.sum(axis=1) >= 8).mean(), of_class.mean()
        assert scenes >= EXPECTED[name][0], f"{name} in {scenes:.2f} of scenes"
        assert pixels >= EXPECTED[name][1], f"{name} has {pixels:.4f} of the pixels"


def test_every_time_of_day_comes_up(small: list[Scene]) -> None:
    times = [made.time for made in small]
    assert set(times) == {"day", "dusk", "night"}
    assert min(times.count(time) for time in set(times)) >= 30


def test_the_hours_can_be_told_apart(small: list[Scene]) -> None:
    """Nights are darker than days, dusks are redder than either."""

    def mean_colour(time: str) -> np.ndarray:
        return np.mean([made.image.mean(axis=(0, 1)) for made in small if made.time == time], axis=0)

    day, dusk, night = mean_colour("day"), mean_colour("dusk"), mean_colour("night")
    assert night.mean() < 0.65 * dusk.mean() < 0.65 * day.mean()
    assert dusk[0] - dusk[2] > max(day[0] - day[2], night[0] - night[2]) + 20


@pytest.mark.parametrize("large", [128, 256, 512])
def test_a_scene_is_the_same_street_at_every_size(large: int) -> None:
    """The middle pixels of the larger map agree, and its mean colours differ by fine detail alone."""
    step = large // 64
    for index in range(6):
        little, big = scene(9, index, 64, 64), scene(9, index, large, large)
        assert big.time == little.time
        middle = slice(step // 2, None, step)
        assert (big.label[middle, middle] == little.label).mean() >= 0.9
        assert (big.instance[middle, middle] == little.instance).mean() >= 0.9
        block_means = big.image.reshape(64, step, 64, step, 3).mean(axis=(1, 3))
        assert np.abs(block_means - little.image).mean() < 15


def test_instances_are_things_of_one_class(small: list[Scene]) -> None:
    things = np.array([name in THINGS for name in CLASSES])
    for made in small[:50]:
        assert np.array_equal(made.instance > 0, things[made.label])
        for instance in np.unique(made.instance[made.instance > 0]):
            assert len(np.unique(made.label[made.instance == instance])) == 1


def test_windows_stand_out_from_their_walls(small: list[Scene]) -> None:
    """At every hour a window differs in colour from the wall beside it, or no segmenter could find it."""
    wall, window = CLASSES.index("building"), CLASSES.index("window")
    for time in ("day", "dusk", "night"):
        steps = []
        for made in (m for m in small if m.time == time):
            pair = (made.label[:, :-2] == wall) & (made.label[:, 2:] == window)
            colours = made.image.astype(np.float64)
            steps.append(np.abs(colours[:, :-2] - colours[:, 2:]).sum(axis=2)[pair])
        assert np.median(np.concatenate(steps)) > 60, time


def test_ground_lies_below_the_horizon_and_sky_above(small: list[Scene]) -> None:
    ground = [CLASSES.index(name) for name in ("road", "pavement", "crossing", "grass")]
    for made in small:
        assert not np.isin(made.label[:28], ground).any()
        assert not (made.label[40:] == CLASSES.index("sky")).any()


def test_nothing_lies_behind_the_camera() -> None:
    """A corner behind the camera's plane would be drawn upside down, over the sky."""
    for index in range(2000):
        plan = layout(6, index)
        for flat in (*plan.ground, *plan.lines, *plan.kerbs):
            assert 0 < flat.z0 < flat.z1, index
        for solid in plan.solids:
            assert (solid.z0 if isinstance(solid, Building) else solid.z) > 0, index


def test_cars_do_not_run_into_each_other() -> None:
    for index in range(500):
        cars = [thing for thing in layout(8, index).solids if isinstance(thing, Thing) and thing.kind is Kind.CAR]
        for number, one in enumerate(cars):
            for other in cars[:number]:
                along, across = abs(one.z - other.z), abs(one.x - other.x)
                if one.heading[0]:
                    along, across = across, along
                assert along > (one.size + other.size) / 2 or across > 1.76, index


def test_palette_names_every_class_once() -> None:
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == len(set(CLASSES)) == 12
    assert CLASSES[:10] == ("sky", "building", "window", "door", "tree", "road", "pavement", "car", "person", "pole")
    assert all(0 <= channel <= 255 for colour in PALETTE for channel in colour)
