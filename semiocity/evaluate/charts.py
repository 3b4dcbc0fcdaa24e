"""Charts as inline SVG. Colours are CSS variables of the page, so they follow its light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 46, 10, 10, 24
POINTS = 480
"""Most points of a line; longer series are averaged in bins."""


class Mark(NamedTuple):
    """A value on a scale."""

    name: str
    value: float
    kind: str
    """CSS class: `ours`, `good` or `bad`."""


class Series(NamedTuple):
    """A curve among others."""

    kind: str
    """CSS classes, which give it its colour."""
    steps: Sequence[float]
    values: Sequence[float]


def line_chart(
    steps: Sequence[float], values: Sequence[float], *, title: str, log: bool = False, smooth: bool = False
) -> Markup:
    """A curve over steps. With `smooth` the values are faint, and a running mean over a 40th is drawn on top.

    Values that are not finite (or not positive, with `log`) are left out; the result is empty when none is left.
    """
    pairs = _drawable(steps, values, log)
    if not smooth:
        return _chart([("", _bins(pairs, POINTS))], title=title, log=log)
    mean = _running_mean(pairs, max(len(pairs) // 40, 1))
    return _chart([("faint", _bins(pairs, POINTS)), ("", mean)], title=title, log=log)


def lines_chart(
    series: Sequence[Series], *, title: str, log: bool = False, smooth: bool = False, from_zero: bool = True
) -> Markup:
    """Several curves over steps, as `line_chart`; with `smooth` only their running means are drawn."""
    drawn = []
    for kind, steps, values in series:
        pairs = _drawable(steps, values, log)
        drawn.append((kind, _running_mean(pairs, max(len(pairs) // 40, 1)) if smooth else _bins(pairs, POINTS)))
    return _chart(drawn, title=title, log=log, from_zero=from_zero)


def _drawable(steps: Sequence[float], values: Sequence[float], log: bool) -> list[tuple[float, float]]:
    return [(s, v) for s, v in zip(steps, values) if math.isfinite(v) and (v > 0 or not log)]


def _chart(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, title: str, log: bool, from_zero: bool = True
) -> Markup:
    """Curves with their CSS classes, 560×200. A curve of one point is drawn as a dot."""
    points = [point for _, curve in curves for point in curve]
    if not points:
        return Markup()
    width, height = 560, 200
    lowest, highest = min(v for _, v in points), max(v for _, v in points)
    ticks = _log_ticks(lowest, highest) if log else _ticks(min(lowest, 0.0) if from_zero else lowest, highest)
    low, high = min(lowest, ticks[0]), max(highest, ticks[-1])
    first = min(s for s, _ in points)
    last = max(first + 1, *(s for s, _ in points))

    def x(step: float) -> float:
        return MARGIN_LEFT + (step - first) / (last - first) * (width - MARGIN_LEFT - MARGIN_RIGHT)

    def y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return height - MARGIN_BOTTOM - share * (height - MARGIN_TOP - MARGIN_BOTTOM)

    parts = []
    for tick, label in zip(ticks, _labels(ticks)):
        at = f"{y(tick):.1f}"
        parts.append(_tag("line", x1=MARGIN_LEFT, x2=width - MARGIN_RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(_tag("text", label, x=MARGIN_LEFT - 6, y=f"{y(tick) + 4:.1f}", class_="tick end"))
    for tick in _ticks(first, last, most=6):
        if first <= tick <= last and tick == int(tick):
            place = "tick end" if tick > last - (last - first) / 20 else "tick middle"
            parts.append(_tag("text", f"{tick:,.0f}", x=f"{x(tick):.1f}", y=height - 6, class_=place))
    for kind, curve in curves:
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in curve)
        parts.append(_tag("polyline", points=path, class_=f"curve {kind}".strip()))
        if len(curve) == 1:
            (s, v) = curve[0]
            parts.append(_tag("circle", cx=f"{x(s):.1f}", cy=f"{y(v):.1f}", r=2.5, class_=f"point {kind}".strip()))
    return _svg(width, height, title, parts)


def class_bars(rows: Sequence[tuple[str, Sequence[int], float | None, float | None, float | None]]) -> Markup:
    """IoU of every class, one line each: name, colour (RGB), value, ceiling, mean colour; None where there is none.

    The bar is the value, the outline behind it the ceiling, the tick the mean colours.
    """
    width, line, left, right = 1100, 27, 190, 56
    scale = width - left - right
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = f"{left + tick * scale:.1f}"
        parts.append(_tag("line", x1=at, x2=at, y1=0, y2=len(rows) * line, class_="grid"))
        parts.append(_tag("text", f"{tick:.0%}", x=at, y=len(rows) * line + 16, class_="tick middle"))
    for i, (name, color, value, ceiling, flat) in enumerate(rows):
        top = i * line + 5
        fill = f"rgb({','.join(str(int(c)) for c in color)})"
        parts.append(_tag("rect", x=2, y=top + 2, width=13, height=13, rx=3, fill=fill, class_="swatch"))
        parts.append(_tag("text", name, x=24, y=top + 13, class_="label"))
        if ceiling is not None:
            parts.append(_tag("rect", x=left, y=top, width=f"{ceiling * scale:.1f}", height=17, class_="ceiling"))
        if value is not None:
            parts.append(_tag("rect", x=left, y=top + 3, width=f"{value * scale:.1f}", height=11, class_="bar"))
        if flat is not None:
            at = f"{left + flat * scale:.1f}"
            parts.append(_tag("line", x1=at, x2=at, y1=top, y2=top + 17, class_="flat"))
        text = "–" if value is None else f"{value:.1%}"
        parts.append(_tag("text", text, x=width - 2, y=top + 13, class_="label end"))
    return _svg(width, len(rows) * line + 22, "Intersection over union by class", parts)


def scale(marks: Sequence[Mark], *, title: str, log: bool = False, top: float | None = None) -> Markup:
    """Values on one scale, 320 wide: a rail with a dot for each.

    The rail goes from 0 to `top` or the highest value; with `log` from the lowest to the highest value.
    """
    width, height, inset = 320, 26, 8
    values = [mark.value for mark in marks]
    if log:
        # What is not above 0 sits at the left end, a little below the smallest that is.
        smallest = min((v for v in values if v > 0), default=1.0)
        values = [math.log10(v if v > 0 else smallest / 3) for v in values]
        low, high = min(values), max(values)
    else:
        low, high = min(0.0, *values), max(values) if top is None else top
    parts = [_tag("line", x1=inset, x2=width - inset, y1=13, y2=13, class_="rail")]
    placed = sorted(zip(marks, values), key=lambda item: item[0].kind == "ours")
    for mark, value in placed:
        at = inset + (value - low) / ((high - low) or 1) * (width - 2 * inset)
        radius = 8 if mark.kind == "ours" else 6
        dot = _tag("circle", cx=f"{at:.1f}", cy=13, r=radius, class_=f"dot {mark.kind}")
        parts.append(Markup("<g>{}{}</g>").format(_tag("title", f"{mark.name}: {_number(mark.value)}"), dot))
    return _svg(width, height, title, parts)


# ---------------------------------------------------------------- parts


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(parts)
    )


def _tag(name: str, text: object = "", **attributes: object) -> Markup:
    written = Markup("").join(Markup(' {}="{}"').format(key.rstrip("_"), value) for key, value in attributes.items())
    return Markup("<{}{}>{}</{}>").format(Markup(name), written, escape(text), Markup(name))


def _bins(pairs: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means over equal parts of the series."""
    if len(pairs) <= most:
        return list(pairs)
    edges = [i * len(pairs) // most for i in range(most + 1)]
    return [_mean(pairs[a:b]) for a, b in pairwise(edges)]


def _running_mean(pairs: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Means over `window` values on either side, at no more than POINTS places."""
    if not pairs:
        return []
    stride = max(len(pairs) // POINTS, 1)
    chosen = sorted({*range(0, len(pairs), stride), len(pairs) - 1})
    return [(pairs[i][0], _mean(pairs[max(i - window, 0) : i + window + 1])[1]) for i in chosen]


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(s for s, _ in pairs) / len(pairs), sum(v for _, v in pairs) / len(pairs)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that span low … high: 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= most)
    first = math.floor(low / step)
    return [step * i for i in range(first, max(math.ceil(high / step), first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose low … high; powers of ten alone over more than two decades."""
    times = (1,) if high / low > 100 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = sorted({t * 10.0**p for p in powers for t in times})
    below = [t for t in ticks if t <= low][-1:] or ticks[:1]
    above = [t for t in ticks if t >= high][:1] or ticks[-1:]
    kept = [t for t in ticks if below[0] <= t <= above[0]]
    return kept if len(kept) > 1 else [below[0], below[0] * 10]


def _labels(values: Sequence[float]) -> list[str]:
    """With as many digits as it takes to tell them apart."""
    drawn = [[_number(value, digits) for value in values] for digits in (3, 4, 5, 6)]
    return next((labels for labels in drawn if len(set(labels)) == len(labels)), drawn[-1])


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-")
