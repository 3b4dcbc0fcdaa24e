"""The comparison as one HTML page that holds everything it shows. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity import templates
from semiocity.compare import text
from semiocity.errors import UserError
from semiocity.files import write_atomic
from semiocity.launch.runs import SWEEP

COLOURS = 10
"""Runs that the page has a colour for; later ones have the same ones dashed."""
CHARTS: tuple[tuple[str, str, bool, bool], ...] = (
    ("loss", "Loss", True, True),
    ("validation/loss", "Validation loss", True, False),
    ("gradient_norm", "Norm of the gradient", True, True),
    ("parameter_norm", "Norm of the weights", False, False),
    ("update_norm", "Norm of a step", True, False),
    ("lr", "Learning rate", False, False),
    ("speed/samples_per_s", "Images a second", False, False),
    ("speed/mfu", "MFU", False, False),
    ("speed/data_wait_share", "Share of the time waiting for data", False, False),
    ("memory/gb", "Memory of the fullest rank, GB", False, False),
)
"""Curve, title, whether its scale is logarithmic, whether it is smoothed."""


def write(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a comparison (`collect.collect`) to `path` and return it. UserError without jinja2."""
    try:
        made = templates.environment(Path(__file__).parent)
    except ImportError:
        raise UserError(
            "a page needs jinja2: pip install 'semiocity[ui]'; without --page the tables are printed"
        ) from None

    made.globals["show"] = text.show
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, made.get_template("compare.html").render(_context(found)).encode())
    return path


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    runs = found["runs"]
    batches = {entry["global_batch"] for entry in runs}
    kinds = {entry["run"]: kind(number) for number, entry in enumerate(runs)}
    return {
        "title": _title([entry["run"] for entry in runs]),
        "runs": runs,
        "kinds": kinds,
        "settings": found["settings"],
        "by_run": len(found["settings"]) <= text.FEW < len(runs),
        "results": text.results(runs),
        "costs": text.costs(runs),
        "charts": _charts(runs, kinds, by_images=len(batches) > 1),
        "by_images": len(batches) > 1,
        "warnings": found["warnings"],
        "none": text.NONE,
    }


def kind(number: int) -> str:
    """CSS classes of run number `number`."""
    return f"s{number % COLOURS}" + (" dashed" if number // COLOURS % 2 else "")


def _charts(runs: Any, kinds: Mapping[str, str], by_images: bool) -> list[tuple[str, Any]]:
    """Title and drawing of every curve that some run has, over steps or over images seen."""
    from semiocity.evaluate.charts import Series, lines_chart

    charts = []
    for name, title, log, smooth in CHARTS:
        series = []
        for entry in runs:
            curve = _curve(entry["curves"], name)
            times = entry["global_batch"] if by_images else 1
            series.append(Series(kinds[entry["run"]], [s * times for s, _ in curve], [v for _, v in curve]))
        axis = "images seen" if by_images else "step"
        from_zero = name != "parameter_norm"
        drawn = lines_chart(series, title=f"{title} by {axis}", log=log, smooth=smooth, from_zero=from_zero)
        if drawn:
            charts.append((title, drawn))
    return charts


def _curve(curves: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """The curve of a name, or that of the first phase that has it."""
    if name in curves:
        return list(curves[name])
    return list(next((curve for found, curve in curves.items() if found.endswith(f"/{name}") and "/" not in name), []))


def _title(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    prefixes = {name.partition(SWEEP)[0] for name in names}
    if len(prefixes) == 1 and all(SWEEP in name for name in names):
        return f"{prefixes.pop()}, {len(names)} runs"
    return " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
