"""Scores of generated images, each beside what it can be compared with: real images, noise, and mean colours.

Everything is deterministic for a seed on one type of device. `scores.json` says how it was measured ("protocol").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semiocity.data.columns import Dataset
from semiocity.errors import UserError
from semiocity.evaluate import noise
from semiocity.evaluate.diversity import DISTANCE, mean_pair, perceptual, pixel_rms
from semiocity.evaluate.extractors import Extractor, InceptionFeatures, SegmenterFeatures
from semiocity.evaluate.frechet import frechet, gaussian, kid
from semiocity.evaluate.images import RESIZE, Pixels, resized
from semiocity.evaluate.judge import judge, predict
from semiocity.evaluate.options import EvaluateJob, InceptionSettings
from semiocity.evaluate.painter import choose_device, deterministic
from semiocity.evaluate.pairs import Pairs
from semiocity.evaluate.samples import Samples
from semiocity.evaluate.segmenting import Confusion
from semiocity.files import write_json
from semiocity.models.segmenter import Segmenter

FORMAT = 1
TRAIN = "train"
COLOUR_IMAGES = 1000
"""Train images over which the mean colours are taken."""
SETS = ("generated", "real", "mean_colour", "noise")


def run(job: EvaluateJob, run: Path, dataset: Path) -> dict[str, Any]:
    """Score a run's images and write `run`/scores.json; returns what it holds.

    UserError when there are no images, they are not of this dataset, or a setting does not fit.
    """
    samples = Samples(job.samples or run / "samples")
    data = Dataset.open(dataset)
    size = job.segmenter.size or samples.size
    view = samples.manifest["settings"].get("view")
    held_out = Pairs(data, samples.manifest["settings"]["split"], size, view).with_keys(list(samples.layouts))
    train = Pairs(data, TRAIN, size, view)
    lessons = train.at_most(job.segmenter.images)
    for found, what in ((held_out, "generated layouts"), (train, "rows in split train")):
        if len(found) < 2:
            raise UserError(f"{dataset}: {len(found)} {what}; the spread of a set needs at least 2")
    device = choose_device(job.device)
    with deterministic():
        folders = (data.path / "judges", run / "judges")
        segmenter, name = judge(lessons, job.segmenter, folders, device)
        extractor = _extractor(job, segmenter, name, device)
        sets = Sets(samples, held_out, mean_colours(train.at_most(COLOUR_IMAGES)), job.seed)
        scores = {
            "format": FORMAT,
            "miou": _miou(sets, segmenter, device, job.batch),
            **_distances(sets, train, extractor, job),
            "diversity": _diversity(sets, segmenter, device),
            "protocol": {
                "segmenter": f"{name}: {job.segmenter.steps} steps on {len(lessons)} train images",
                "size": list(size),
                "resize": RESIZE,
                "images": len(samples.manifest["images"]),
                "layouts": len(held_out),
                "images_per_layout": samples.images_per_layout,
                "split": samples.manifest["settings"]["split"],
                "extractor": extractor.name,
                "seed": job.seed,
                "device": device.type,
            },
            "samples": samples.manifest["settings_digest"],
            "dataset": {"name": data.name, "digest": data.digest},
        }
    write_json(run / "scores.json", scores)
    return scores


class Sets:
    """The sets of images that are scored, each [B, H, W, 3] for a list of layouts, at one size."""

    def __init__(self, samples: Samples, held_out: Pairs, colours: Pixels, seed: int) -> None:
        self.samples, self.held_out, self.colours, self.seed = samples, held_out, colours, seed
        self.keys = [held_out.key(i) for i in range(len(held_out))]

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, name: str, layouts: Sequence[int], number: int = 0) -> Pixels:
        """One image a layout of the set `name`, one of SETS. Only `generated` has several numbers."""
        match name:
            case "generated":
                return np.stack([self.generated(i, number) for i in layouts])
            case "real":
                return self.held_out.images(layouts)
            case "mean_colour":
                return self.colours[self.held_out.labels(layouts)]
            case "noise":
                return np.stack([self._noise(i) for i in layouts])
        raise KeyError(name)

    def generated(self, layout: int, number: int) -> Pixels:
        """Image `number` of a layout."""
        image = self.samples.layouts[self.keys[layout]][number]
        return resized(self.samples.read(image), self.held_out.size)

    def _noise(self, layout: int) -> Pixels:
        """What a sampler starts from, as a picture."""
        seed = noise.image_seed(self.seed, self.keys[layout], 0)
        values = noise.normal(seed, (*self.held_out.size, 3)).clip(-1, 1)
        return np.rint((values + 1) * 127.5).astype(np.uint8)

    def batches(self, size: int) -> Iterator[range]:
        """The layouts, so many at a time."""
        for first in range(0, len(self), size):
            yield range(first, min(first + size, len(self)))

    def numbered(self, name: str) -> Iterator[int]:
        """Numbers of the images that a layout has in a set."""
        yield from range(self.samples.images_per_layout if name == "generated" else 1)


def mean_colours(pairs: Pairs) -> Pixels:
    """Mean colour of every id: [256, 3]. Ids that no pixel has take the mean of all pixels."""
    sums, counts = np.zeros((256, 3)), np.zeros(256)
    for i in range(len(pairs)):
        ids, colours = pairs.label(i).ravel(), pairs.image(i).reshape(-1, 3)
        counts += np.bincount(ids, minlength=256)
        sums += np.stack([np.bincount(ids, weights=colours[:, c], minlength=256) for c in range(3)], axis=1)
    overall = sums.sum(axis=0) / counts.sum()
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], overall)
    return np.rint(means).astype(np.uint8)


# ---------------------------------------------------------------- the scores


def _extractor(job: EvaluateJob, segmenter: Segmenter, name: str, device: torch.device) -> Extractor:
    if isinstance(job.extractor, InceptionSettings):
        return InceptionFeatures(job.extractor.weights, device)
    return SegmenterFeatures(segmenter, name, device)


def _miou(sets: Sets, segmenter: Segmenter, device: torch.device, batch: int) -> dict[str, Any]:
    classes = sets.held_out.classes
    found = {name: Confusion(len(classes), sets.held_out.ignore_id) for name in SETS}
    for layouts in sets.batches(batch):
        truth = sets.held_out.labels(layouts)
        for name in SETS:
            for number in sets.numbered(name):
                found[name].add(truth, predict(segmenter, sets.of(name, layouts, number), device))
    train_ids = sets.held_out.train_ids
    if any(i is not None for i in train_ids):
        found = {name: confusion.merged(train_ids) for name, confusion in found.items()}
        names = {i: name for i, name in zip(train_ids, classes) if i is not None}
        classes = tuple(names.get(i, "") for i in range(max(names) + 2))
    present = found["real"].counts.sum(axis=1)
    ious = {name: found[name].iou() for name in SETS}
    return {
        "value": found["generated"].miou(),
        "ceiling": found["real"].miou(),
        "mean_colour": found["mean_colour"].miou(),
        "noise": found["noise"].miou(),
        "accuracy": {"value": found["generated"].accuracy(), "ceiling": found["real"].accuracy()},
        "classes": [
            {
                "name": name,
                "share": float(present[i] / present.sum()),
                "value": ious["generated"][i],
                "ceiling": ious["real"][i],
                "mean_colour": ious["mean_colour"][i],
            }
            for i, name in enumerate(classes)
            if present[i]
        ],
    }


def _distances(sets: Sets, train: Pairs, extractor: Extractor, job: EvaluateJob) -> dict[str, Any]:
    """Fréchet distance and KID of every set to the reference.

    Small sets overestimate the Fréchet distance, so all that are compared have one image a layout; `value` is the mean
    over the numbers of the generated images.
    """
    features = {name: _all_features(sets, name, extractor, job.batch) for name in SETS}
    real = features.pop("real")[0]
    others = train.at_most(job.frechet.images)
    if job.frechet.reference == "train":
        reference = _features(extractor, others.images, len(others), job.batch)
        floor = real
    else:
        others = train.at_most(len(sets))
        reference, floor = real, _features(extractor, others.images, len(others), job.batch)
    features["floor"] = floor[None]

    moments = gaussian(reference)
    by_number = [frechet(gaussian(vectors), moments) for vectors in features["generated"]]
    pooled = {name: vectors.reshape(-1, vectors.shape[-1]) for name, vectors in features.items()}
    kernel = {
        name: kid(vectors, reference, subsets=job.kid.subsets, subset_images=job.kid.subset_images, seed=job.seed)
        for name, vectors in pooled.items()
    }
    compared = ("noise", "mean_colour", "floor")
    shared = {"extractor": extractor.name, "reference": f"{len(reference)} real {job.frechet.reference} images"}
    return {
        "frechet": {
            "value": float(np.mean(by_number)),
            "std": float(np.std(by_number)),
            **{name: frechet(gaussian(pooled[name]), moments) for name in compared},
            "images": len(sets),
            **shared,
        },
        "kid": {
            "value": kernel["generated"].mean,
            "std": kernel["generated"].std,
            **{name: kernel[name].mean for name in compared},
            "subsets": job.kid.subsets,
            "subset_images": kernel["generated"].subset_images,
            **shared,
        },
    }


def _all_features(sets: Sets, name: str, extractor: Extractor, batch: int) -> NDArray[np.float32]:
    """Feature vectors of a set: [numbers, layouts, D]."""
    return np.stack(
        [
            _features(extractor, partial(sets.of, name, number=number), len(sets), batch)
            for number in sets.numbered(name)
        ]
    )


def _features(extractor: Extractor, images: Callable[[range], Pixels], count: int, batch: int) -> NDArray[np.float32]:
    """Feature vectors [count, D] of `count` images, a batch at a time."""
    parts = [extractor(images(range(first, min(first + batch, count)))) for first in range(0, count, batch)]
    return np.concatenate(parts)


def _diversity(sets: Sets, segmenter: Segmenter, device: torch.device) -> dict[str, Any]:
    """Mean distance of the images of one layout, beside that of real images of different layouts."""
    per_layout = sets.samples.images_per_layout
    within, pixels = [], []
    for layout in range(len(sets)) if per_layout > 1 else ():
        images = np.stack([sets.generated(layout, number) for number in range(per_layout)])
        within.append(mean_pair(perceptual(segmenter, images, device)))
        pixels.append(pixel_rms(images))
    between = [mean_pair(perceptual(segmenter, sets.held_out.images([i - 1, i]), device)) for i in range(1, len(sets))]
    return {
        "value": float(np.mean(within)) if within else None,
        "between_layouts": float(np.mean(between)) if between else None,
        "pixel_rms": float(np.mean(pixels)) if pixels else None,
        "distance": DISTANCE,
    }
