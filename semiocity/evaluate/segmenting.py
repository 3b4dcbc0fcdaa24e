"""Intersection over union of label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Confusion:
    """Counts of (true class, predicted class) over pixels, added up image by image."""

    def __init__(self, classes: int, ignore_id: int | None) -> None:
        self.classes = classes
        self.ignore_id = ignore_id
        self.counts: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)

    def add(self, truth: NDArray[Any], predicted: NDArray[Any]) -> None:
        """Count label maps of one shape, integers. Pixels whose truth is the ignored id do not count, whatever was
        predicted there. ValueError when another id is out of range."""
        kept = np.ones(truth.shape, dtype=bool) if self.ignore_id is None else truth != self.ignore_id
        rows, columns = truth[kept].astype(np.int64), predicted[kept].astype(np.int64)
        for name, ids in (("truth", rows), ("prediction", columns)):
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.classes:
                raise ValueError(f"{name} has ids from {ids.min()} to {ids.max()}; there are {self.classes} classes")
        self.counts += np.bincount(rows * self.classes + columns, minlength=self.classes**2).reshape(
            self.classes, self.classes
        )

    def iou(self) -> list[float | None]:
        """Intersection over union of every class; None where it is neither in the truth nor predicted."""
        hits = np.diagonal(self.counts)
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - hits
        return [float(hit) / float(total) if total else None for hit, total in zip(hits, union)]

    def miou(self) -> float:
        """Mean of `iou` over the classes that the truth holds. ValueError when it holds none.

        A class that is predicted but not there already costs the classes in whose place it was predicted.
        """
        present = self.counts.sum(axis=1) > 0
        if not present.any():
            raise ValueError("no pixel has a class: every label is the ignored id")
        return float(np.mean([value for value, there in zip(self.iou(), present) if there and value is not None]))

    def accuracy(self) -> float:
        """Share of pixels labelled rightly."""
        return float(np.trace(self.counts)) / max(int(self.counts.sum()), 1)
