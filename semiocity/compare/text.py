"""The comparison for a terminal: tables of settings that differ, of results and of costs. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from semiocity.files import canonical

NONE = "–"
FEW = 6
"""Settings that fit beside one another."""


def render(found: Mapping[str, Any]) -> str:
    """The whole comparison; the lowest validation loss and the best scores have a star."""
    runs = found["runs"]
    parts = [settings_table(found), table(*results(runs)), table(*costs(runs))]
    parts += [f"note: {warning}" for warning in found["warnings"]]
    return "\n\n".join(part for part in parts if part)


def settings_table(found: Mapping[str, Any]) -> str:
    """What differs: a line a run while there are few keys, else a line a key."""
    names = [entry["run"] for entry in found["runs"]]
    settings = found["settings"]
    if not settings:
        return "settings: the same in all" if len(names) > 1 else ""
    if len(settings) <= FEW:
        rows = [[name, *(show(settings[key].get(name)) for key in settings)] for name in names]
        return table(["settings", *settings], rows)
    return table(
        ["settings", *names], [[key, *(show(row.get(name)) for name in names)] for key, row in settings.items()]
    )


def results(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: state, losses, scores."""
    columns: list[tuple[str, Callable[[Any], Any], str, Callable[..., Any] | None]] = [
        ("steps", lambda e: f"{e['step']:,}/{e['steps']:,}", "{}", None),
        ("state", lambda e: e["state"], "{}", None),
        ("loss", lambda e: e["loss"], "{:.5g}", None),
        ("validation", lambda e: (e["validation"] or {}).get("last"), "{:.5g}", None),
        ("lowest", lambda e: (e["validation"] or {}).get("best"), "{:.5g}", min),
        ("at step", lambda e: (e["validation"] or {}).get("best_step"), "{:,.0f}", None),
        ("mIoU", lambda e: e["scores"].get("miou"), "{:.1%}", max),
        ("Fréchet", lambda e: e["scores"].get("frechet"), "{:.4g}", min),
        ("KID", lambda e: e["scores"].get("kid"), "{:.3g}", min),
        ("diversity", lambda e: e["scores"].get("diversity"), "{:.3g}", None),
    ]
    return _columns("results", runs, columns)


def costs(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: time, GPUs, speed."""
    columns: list[tuple[str, Callable[[Any], Any], str, Callable[..., Any] | None]] = [
        ("hours", lambda e: e["cost"]["hours"], "{:.2f}", None),
        ("GPU-hours", lambda e: e["cost"]["gpu_hours"] or None, "{:.2f}", None),
        ("images", lambda e: e["samples"], "{:,}", None),
        ("images/s", lambda e: e["cost"]["images_per_s"], "{:.4g}", None),
        ("images/GPU-hour", lambda e: e["cost"]["images_per_gpu_hour"], "{:,.0f}", None),
        ("TFLOP/s a GPU", lambda e: e["cost"]["tflops_per_gpu"], "{:.3g}", None),
        ("MFU", lambda e: e["cost"]["mfu"], "{:.0%}", None),
        ("data wait", lambda e: e["cost"]["data_wait_share"], "{:.1%}", None),
        ("memory GB", lambda e: e["cost"]["memory_gb"], "{:.1f}", None),
        ("came back", lambda e: e["cost"]["returns"] or None, "{}×", None),
    ]
    return _columns("costs", runs, columns)


def _columns(
    title: str,
    runs: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, Callable[[Any], Any], str, Callable[..., Any] | None]],
) -> tuple[list[str], list[list[str]]]:
    """Only columns of which some run has a value. `best` marks one of several."""
    shown = []
    for name, value, form, best in columns:
        values = [value(entry) for entry in runs]
        known = [v for v in values if v is not None]
        if not known:
            continue
        top = best(known) if best and len(set(known)) > 1 else None
        cells = [NONE if v is None else form.format(v) + ("*" if top is not None and v == top else "") for v in values]
        shown.append((name, cells))
    header = [title, *(name for name, _ in shown)]
    return header, [[entry["run"], *(cells[i] for _, cells in shown)] for i, entry in enumerate(runs)]


def show(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else canonical(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names; the first is left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for row in (header, *rows):
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
