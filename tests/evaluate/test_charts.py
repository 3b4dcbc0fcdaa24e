"""Charts: what lies where, and series that cannot be drawn."""

from __future__ import annotations

import math
import re

import pytest

from semiocity.evaluate.charts import POINTS, Mark, class_bars, line_chart, scale


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
