"""Intersection over union of label maps."""

from __future__ import annotations

from collections.abc import Sequence
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

    def merged(self, train_ids: Sequence[int | None]) -> Confusion:
        """The same counts by the classes' train ids (0 … n-1), of which scores on few classes speak.

        Classes without one do not count where they are the truth. Where they are predicted they are a mistake, as a
        last class that is never there.
        """
        most = max(i for i in train_ids if i is not None) + 1
        place = [most if i is None else i for i in train_ids]
        made = Confusion(most + 1, None)
        for true, counts in zip(train_ids, self.counts):
            if true is not None:
                np.add.at(made.counts[true], place, counts)
        return made

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
