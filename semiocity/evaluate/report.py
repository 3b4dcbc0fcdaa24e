"""The report: one HTML page that holds everything it shows, and a contact sheet as PNG.

Works with whatever is there: a run without scores, without images, or a dataset without captions still has a page, and
the page says what is missing. No torch here.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from semiocity import templates
from semiocity.data.columns import Dataset
from semiocity.data.manifest import read_manifest
from semiocity.data.sources.reasons import REASONS
from semiocity.errors import UserError
from semiocity.evaluate import charts, gather, tiles
from semiocity.evaluate.cards import score_cards
from semiocity.evaluate.rows import HeldOut
from semiocity.files import write_atomic

ROWS = 24
"""Held-out layouts on a page."""
COLUMNS = 5
"""Generated images of a layout on a page."""
PACKAGES = ("semiocity", "torch", "deepspeed", "numpy", "pillow", "pyarrow")


def write(run: Path, dataset: Path, rows: int = ROWS) -> Path:
    """Write `run`/report.html and return its path.

    The page is self-contained: styles inline, pictures as data URIs, charts as SVG, no scripts; captions, names and
    everything else that came from outside is escaped. UserError when `dataset` holds no packed dataset.
    """
    page = _environment().get_template("report.html").render(_context(run, dataset, rows))
    path = run / "report.html"
    write_atomic(path, page.encode())
    return path


def contact_sheet(run: Path, dataset: Path, out: Path, rows: int = 6, images: int = 4, side: int = 192) -> Path:
    """Write a PNG grid to `out`: layout, real image and `images` generated ones a row, tiles `side` pixels wide.

    UserError when the run has no generated images.
    """
    held = HeldOut(run, Dataset.open(dataset), rows)
    if held.samples is None:
        raise UserError(f"{run}/samples: no generated images; run `semiocity generate` first")
    images = min(images, held.samples.images_per_layout)
    height = round(side * held.size[0] / held.size[1])
    gap = 6
    sheet = Image.new(
        "RGB", ((images + 2) * (side + gap) - gap, len(held.rows) * (height + gap) - gap), (255, 255, 255)
    )
    for line, row in enumerate(held.rows):
        pictures = [(held.layout(row), Image.Resampling.NEAREST), (held.real(row), Image.Resampling.BICUBIC)]
        pictures += [(held.generated(row, number), Image.Resampling.BICUBIC) for number in range(images)]
        for place, (pixels, how) in enumerate(pictures):
            if pixels is not None:
                tile = Image.fromarray(pixels).resize((side, height), how)
                sheet.paste(tile, (place * (side + gap), line * (height + gap)))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG", optimize=True)
    return out


def _environment() -> Any:
    made = templates.environment(Path(__file__).parent)
    made.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")
    made.filters["plain"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    return made


def _context(run: Path, dataset: Path, rows: int) -> dict[str, Any]:
    facts = read_manifest(dataset)
    data = Dataset.open(dataset)
    held = HeldOut(run, data, rows)
    scores = gather.optional(run / "scores.json")
    training = gather.training(run)
    model = gather.export(run)
    return {
        "run": run.resolve().name,
        "data": facts,
        "classes": [(spec.name, "#" + bytes(spec.color).hex()) for spec in data.classes],
        "rejected": [(reason, count, REASONS.get(reason, "")) for reason, count in facts["rejected"].items()],
        "held": held,
        "tiles": [_tiles(held, row) for row in held.rows],
        "columns": min(held.samples.images_per_layout, COLUMNS) if held.samples else 0,
        "model": model,
        "training": training,
        "curves": _curves(training),
        "scores": scores,
        "cards": score_cards(scores) if scores else [],
        "bars": _bars(scores, data) if scores else "",
        "settings": held.samples.manifest["settings"] if held.samples else None,
        "provenance": _provenance(facts, held, model),
        "jobs": gather.newest_jobs(run),
        "versions": _versions(),
    }


def _tiles(held: HeldOut, row: int) -> dict[str, Any]:
    """What the page shows of one held-out row."""
    real, layout, over = held.real(row), held.layout(row), held.overlaid(row)
    count = min(held.samples.images_per_layout, COLUMNS) if held.samples else 0
    made = [held.generated(row, number) for number in range(count)]
    return {
        "key": held.view.key(row),
        "layout": tiles.flat_uri(layout) if layout is not None else None,
        "real": tiles.data_uri(real),
        "masks": tiles.data_uri(over) if over is not None else None,
        "generated": [tiles.data_uri(image) for image in made if image is not None],
        "caption": held.caption(row),
    }


def _curves(training: gather.Training | None) -> list[tuple[str, Any]]:
    if training is None or not training.steps:
        return []
    loss = charts.line_chart(training.steps, training.loss, title="Loss by step", log=True, smooth=True)
    rate = charts.line_chart(training.steps, training.rate, title="Learning rate by step")
    steps, losses = zip(*training.validation) if training.validation else ((), ())
    held_out = charts.line_chart(steps, losses, title="Validation loss by step", log=True)
    drawn = (("Loss", loss), ("Validation loss", held_out), ("Learning rate", rate))
    return [(name, chart) for name, chart in drawn if chart]


def _bars(scores: dict[str, Any], data: Dataset) -> Any:
    colors = {spec.name: spec.color for spec in data.classes}
    found = sorted(scores["miou"]["classes"], key=lambda entry: -entry["share"])
    return charts.class_bars(
        [(e["name"], colors.get(e["name"], (128, 128, 128)), e["value"], e["ceiling"], e["mean_colour"]) for e in found]
    )


def _provenance(facts: dict[str, Any], held: HeldOut, model: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What is needed to make all of it again, as (name, value)."""
    found = [("Dataset", f"{facts['name']}, {facts['digest']}")]
    found += [(f"Column {name}", f"revision {entry['revision']}") for name, entry in sorted(facts["columns"].items())]
    if model:
        found.append(("Training", f"step {model.get('step', '?')}, seed {model.get('seed', '?')}"))
    if held.samples:
        settings = held.samples.manifest["settings"]
        found += [
            ("Model", settings["model"]),
            ("Images", f"settings {held.samples.manifest['settings_digest']}, seed {settings['seed']}"),
        ]
    return found


def _versions() -> str:
    """Versions of what wrote this page, where they are installed."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
