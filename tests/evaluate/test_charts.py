"""Charts: what lies where, and series that cannot be drawn."""

from __future__ import annotations

import math
import re

import pytest

from semiocity.evaluate.charts import POINTS, Mark, Series, class_bars, line_chart, lines_chart, scale


def _points(chart: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="([^"]*)"', chart)
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.split())] for line in lines]


@pytest.mark.parametrize("log", [False, True])
def test_a_falling_curve_falls_inside_its_frame(log: bool) -> None:
    (points,) = _points(line_chart(range(1, 101), [1 / i for i in range(1, 101)], title="t", log=log))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert all(0 <= x <= 560 and 0 <= y <= 200 for x, y in points)


def test_long_series_are_averaged_to_few_points() -> None:
    faint, smooth = _points(line_chart(range(100_000), [1.0, 3.0] * 50_000, title="t", smooth=True))
    assert len(faint) == POINTS
    assert len(smooth) <= POINTS + 2
    assert max(y for _, y in faint) - min(y for _, y in faint) < 1, "every bin has about as many of either value"


@pytest.mark.parametrize("values", [[], [math.nan, math.inf], [0.0, -1.0]])
def test_what_cannot_be_drawn_is_left_out(values: list[float]) -> None:
    assert line_chart(range(len(values)), values, title="t", log=True) == ""


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [2.0] * 9, [1e-9, 1e9], [-3.0, 5.0]])
def test_awkward_ranges_are_drawn(values: list[float]) -> None:
    for log in (False, True):
        chart = line_chart(range(len(values)), values, title="t", log=log)
        assert "nan" not in chart
        assert all(0 <= y <= 200 for line in _points(chart) for _, y in line)


def test_curves_of_several_runs_share_their_axes() -> None:
    short, long = Series("s0", [0, 10], [1.0, 1.0]), Series("s1 dashed", [0, 100], [2.0, 4.0])
    chart = lines_chart([short, Series("s2", [], []), long], title="t")
    assert re.findall(r'class="curve ([^"]*)"', chart) == ["s0", "s2", "s1 dashed"]
    (ended, _), (_, _), (whole, _) = (points[-1] if points else (0, 0) for points in _all_points(chart))
    assert ended < 100 and whole == 550
    assert lines_chart([Series("s0", [], [])], title="t") == ""
    assert "<circle" in lines_chart([Series("s0", [3], [1.0])], title="t"), "a single point is seen"


def test_labels_can_be_told_apart() -> None:
    chart = lines_chart([Series("s0", [2, 6], [27.41, 27.52])], title="t", from_zero=False)
    labels = re.findall(r'class="tick end">([^<]*)<', chart)
    assert len(set(labels)) == len(labels) and "27.45" in chart
    assert re.findall(r'class="tick middle">([^<]*)<', chart) == ["2", "3", "4", "5"], "steps are whole"


def _all_points(chart: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="([^"]*)"', chart)
    return [[(float(p.split(",")[0]), float(p.split(",")[1])) for p in line.split()] for line in lines]


def test_names_are_escaped() -> None:
    chart = class_bars([("<b>&", (1, 2, 3), 0.5, None, 0.25)])
    assert "&lt;b&gt;&amp;" in chart
    assert "<b>" not in chart
    assert "&lt;b&gt;" in scale([Mark("<b>", 0.5, "ours")], title="t")


def test_bars_are_as_long_as_their_values() -> None:
    chart = class_bars([("road", (1, 2, 3), 0.5, 1.0, None), ("pole", (4, 5, 6), None, 0.25, None)])
    (bar,) = re.findall(r'width="([\d.]+)"[^>]*class="bar"', chart)
    full, quarter = re.findall(r'width="([\d.]+)"[^>]*class="ceiling"', chart)
    assert float(bar) == pytest.approx(float(full) / 2)
    assert float(quarter) == pytest.approx(float(full) / 4)


def test_scale_places_marks_in_order_and_bears_zero() -> None:
    marks = [Mark("a", 0.01, "good"), Mark("b", 100.0, "bad"), Mark("c", 1.0, "ours"), Mark("d", -0.001, "flat")]
    chart = scale(marks, title="t", log=True)
    place = {name: float(x) for name, x in re.findall(r"<title>(\w): [^<]*</title><circle cx=\"([\d.]+)\"", chart)}
    assert place["d"] < place["a"] < place["c"] < place["b"]
    assert place["c"] == pytest.approx((place["a"] + place["b"]) / 2, abs=0.2)
