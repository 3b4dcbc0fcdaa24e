"""Real images with their label maps, at one size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from semiocity.data.columns import Dataset
from semiocity.data.loader import Arrays, Rows
from semiocity.errors import UserError
from semiocity.evaluate.images import Pixels, Size, decode_image, decode_label
from semiocity.files import digest

IMAGE, LABEL = "base.image", "base.label"
CACHE_MB = 1024


class Pairs:
    """Real images and their label maps of one split, at one size, decoded when asked for."""

    def __init__(self, dataset: Dataset, split: str, size: Size, rows: list[int] | None = None) -> None:
        """`rows` picks rows of the split's view, in that order; None takes all."""
        self.classes = tuple(spec.name for spec in dataset.classes)
        self.ignore_id = dataset.ignore_id
        self.size = size
        self._view = dataset.view([IMAGE, LABEL], split)
        self.rows = list(range(len(self._view))) if rows is None else rows
        if not self.rows:
            raise UserError(f"{dataset.name}: split {split!r} has no rows with {IMAGE} and {LABEL}")
        self.digest = digest([self._view.digest, self.rows])
        self._decoded = Rows(self._view, partial(_decode, size, len(self.classes), self.ignore_id), CACHE_MB)

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, i: int) -> str:
        return self._view.key(self.rows[i])

    def image(self, i: int) -> Pixels:
        """[H, W, 3]"""
        return self._decoded[self.rows[i]]["image"]

    def label(self, i: int) -> Pixels:
        """[H, W], class ids"""
        return self._decoded[self.rows[i]]["label"]


def spread(total: int, most: int) -> list[int]:
    """At most `most` of the numbers below `total`, evenly spaced: all shards of a dataset have their share."""
    return [i * total // min(total, most) for i in range(min(total, most))]


def _decode(size: Size, classes: int, ignore_id: int | None, row: Mapping[str, bytes | None]) -> Arrays:
    image, label = row[IMAGE], row[LABEL]
    if image is None or label is None:
        raise ValueError(f"no {IMAGE if image is None else LABEL}")
    return {"image": decode_image(image, size), "label": decode_label(label, classes, ignore_id, size)}
