"""N images for each layout of a split: a function of model, layouts, settings and seed, however the work is divided.

Layouts are taken in the dataset's order, in groups whose borders depend on the settings alone, and a group is always
painted as a whole: what an image becomes does not depend on which task painted it, nor on what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semiocity.data.columns import Dataset, View
from semiocity.errors import UserError
from semiocity.evaluate import noise
from semiocity.evaluate.images import Pixels
from semiocity.evaluate.options import GenerateJob
from semiocity.evaluate.painter import Painter, choose_device
from semiocity.evaluate.samples import complete, is_done, merge_samples, publish, read_manifest, write_plan

__all__ = ["merge_samples", "regenerate", "run"]

SETTINGS = ("view", "split", "images_per_layout", "sampler", "steps", "guidance", "eta", "seed", "batch", "dtype")
"""What of a job decides what the images become; `limit` and `tasks` do not."""
VERSION = 1
"""Raised when the same settings make other images."""


def run(job: GenerateJob, run: Path, dataset: Path, index: int, of: int, stop: Callable[[], bool]) -> bool:
    """Paint task `index`'s share of the layouts, what is missing of it, into `run`/samples.

    Looks at `stop` between groups of layouts. Returns False when it stopped early. The task that finds all images
    there writes the manifest. UserError when model and dataset do not fit.
    """
    export, folder = job.model or run / "export", run / "samples"
    painter = Painter(export, job, choose_device(job.device))
    data = Dataset.open(dataset)
    painter.check_classes([spec.name for spec in data.classes], dataset)
    view = data.pick(sorted(painter.fields.values()), job.split, job.view)
    count = min(job.limit or len(view), len(view))
    if not count:
        raise UserError(f"{dataset}: split {job.split!r} has no layouts")
    keys = [view.key(row) for row in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    places = {"model": _relative(export, folder), "dataset": _relative(dataset, folder)}
    name = write_plan(folder, settings(job, painter, view), places, keys)

    groups = list(_groups(range(count), job))
    mine = groups[index * len(groups) // of : (index + 1) * len(groups) // of]
    done = 0
    for group in mine:
        if stop():
            return False
        missing = [row for row in group if not is_done(folder, keys[row], name)]
        if missing:
            painted = paint(painter, view, data.ignore_id, group)
            for row in missing:
                publish(folder, keys[row], name, *painted[row])
        done += len(group)
        print(f"{done} of {sum(map(len, mine))} layouts", flush=True)
    if complete(folder, keys, name):
        merge_samples(folder)
    return True


def regenerate(
    manifest: Path, out: Path, model: Path | None = None, dataset: Path | None = None, device: str | None = None
) -> list[str]:
    """Make the images of a manifest again in `out`, and name those that differ, with how they differ.

    Model, dataset and type of device are those that the manifest names, unless given. UserError when model or dataset
    are not those it was made with, or when `out` is where the manifest's own images are.
    """
    old = read_manifest(manifest)
    there = manifest.parent.resolve()
    if out.resolve() == there:
        raise UserError(f"{out}: these are the images to compare with; choose another folder")
    wanted = old["settings"]
    export = model or _at(there, old["places"]["model"])
    taken = {name: wanted[name] for name in (*SETTINGS, "device") if name in wanted} | (
        {"device": device} if device else {}
    )
    job = GenerateJob(dataset=dataset or _at(there, old["places"]["dataset"]), **taken)
    painter = Painter(export, job, choose_device(job.device))
    data = Dataset.open(job.dataset)
    view = data.pick(sorted(painter.fields.values()), job.split, job.view)
    found = settings(job, painter, view)
    for part, what in (("model", f"model {export}"), ("layouts", f"dataset {job.dataset}"), ("version", "Semiocity")):
        if found[part] != wanted[part]:
            raise UserError(f"{manifest}: made with another {what} (then {wanted[part]}, now {found[part]})")

    keys = list(dict.fromkeys(image["key"] for image in old["images"]))
    out.mkdir(parents=True, exist_ok=True)
    name = write_plan(out, found, {"model": _relative(export, out), "dataset": _relative(job.dataset, out)}, keys)
    for group in _groups(range(len(keys)), job):
        painted = paint(painter, view, data.ignore_id, group)
        for row in group:
            publish(out, keys[row], name, *painted[row])
    before = {image["file"]: image for image in old["images"]}
    differing = []
    for image in merge_samples(out)["images"]:
        was = before[image["file"]]
        if image["sha256"] != was["sha256"]:
            how = "other pixels" if image["pixels"] != was["pixels"] else "the same pixels in another encoding"
            differing.append(f"{image['file']}: {how}")
    return differing


def settings(job: GenerateJob, painter: Painter, view: View) -> dict[str, Any]:
    """Everything that decides what the images become; part of the manifest."""
    return {
        "version": VERSION,
        "model": painter.digest,
        "layouts": view.digest,
        "size": list(painter.size),
        "device": painter.device.type,
        **{name: getattr(job, name) for name in SETTINGS},
    }


def paint(
    painter: Painter, view: View, ignore_id: int | None, group: Sequence[int]
) -> dict[int, tuple[list[Pixels], list[str]]]:
    """All images of a group of layouts, by row: pixels and seeds. UserError naming a layout that is damaged."""
    job = painter.job
    layouts, seeds = [], []
    for row in group:
        key = view.key(row)
        try:
            layout = painter.layout(view.read(row), ignore_id)
        except (ValueError, OSError) as error:
            raise UserError(f"{view.dataset.path}: layout {key}: {error}; `semiocity verify` tells more") from None
        layouts += [layout] * job.images_per_layout
        seeds += [noise.image_seed(job.seed, key, number) for number in range(job.images_per_layout)]
    pixels = np.concatenate(
        [
            painter.paint(torch.cat(layouts[first : first + job.batch]), seeds[first : first + job.batch])
            for first in range(0, len(seeds), job.batch)
        ]
    )
    share = {row: slice(i * job.images_per_layout, (i + 1) * job.images_per_layout) for i, row in enumerate(group)}
    return {row: (list(pixels[part]), seeds[part]) for row, part in share.items()}


def _groups(rows: range, job: GenerateJob) -> Iterator[range]:
    """Layouts painted together: as many as fill a batch, at least one."""
    size = max(1, job.batch // job.images_per_layout)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, so that both can move together."""
    return os.path.relpath(path.resolve(), folder.resolve())


def _at(folder: Path, place: str) -> Path:
    return (folder / place).resolve()
