"""Real images with their label maps, at one size."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from semiocity.data.columns import Dataset
from semiocity.data.loader import Arrays, Room, Rows
from semiocity.errors import UserError
from semiocity.evaluate.images import Pixels, Size, decode_image, decode_label
from semiocity.files import digest

IMAGE, LABEL = "base.image", "base.label"
CACHE_MB = 1024


class Pairs:
    """Real images and their label maps of one split, at one size, decoded when asked for (and kept, up to 1 GB).

    With `view` they are those of a saved view's split.
    """

    def __init__(self, dataset: Dataset, split: str, size: Size, view: str | None = None) -> None:
        self.classes = tuple(spec.name for spec in dataset.classes)
        self.train_ids = tuple(spec.train_id for spec in dataset.classes)
        self.ignore_id = dataset.ignore_id
        self.size = size
        self._view = dataset.pick([IMAGE, LABEL], split, view)
        self.rows = list(range(len(self._view)))
        if not self.rows:
            raise UserError(f"{dataset.path}: split {split!r} has no rows")
        self._decoded = Rows(self._view, partial(_decode, len(self.classes), self.ignore_id), CACHE_MB)

    def pick(self, places: Sequence[int]) -> Pairs:
        """Some of these, in the given order; what is decoded is shared."""
        picked = copy.copy(self)
        picked.rows = [self.rows[place] for place in places]
        return picked

    def at_most(self, count: int) -> Pairs:
        """`count` of these or fewer, evenly spaced: every shard has its share."""
        count = min(count, len(self))
        return self.pick([i * len(self) // count for i in range(count)])

    def with_keys(self, keys: Sequence[str]) -> Pairs:
        """Those with these keys, in that order. UserError when one is not there."""
        places = {self.key(i): i for i in range(len(self))}
        absent = [key for key in keys if key not in places]
        if absent:
            raise UserError(
                f"{self._view.dataset.path}: no row {absent[0]} in split {self._view.split!r}; the images were "
                "generated for another dataset, or it was packed again since. Run `semiocity generate` again"
            )
        return self.pick([places[key] for key in keys])

    @property
    def digest(self) -> str:
        """Equal for the same rows with the same bytes."""
        return digest([self._view.digest, self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, i: int) -> str:
        return self._view.key(self.rows[i])

    def image(self, i: int) -> Pixels:
        """[H, W, 3]"""
        return self._decoded.row(self.rows[i], self.size).arrays["image"]

    def label(self, i: int) -> Pixels:
        """[H, W], class ids"""
        return self._decoded.row(self.rows[i], self.size).arrays["label"]

    def images(self, places: Sequence[int]) -> Pixels:
        """[B, H, W, 3]"""
        return np.stack([self.image(i) for i in places])

    def labels(self, places: Sequence[int]) -> Pixels:
        """[B, H, W]"""
        return np.stack([self.label(i) for i in places])


def _decode(classes: int, ignore_id: int | None, row: Mapping[str, bytes | None], size: Size, room: Room) -> Arrays:
    image, label = row[IMAGE], row[LABEL]
    if image is None or label is None:
        raise ValueError(f"no {IMAGE if image is None else LABEL}")
    return {"image": decode_image(image, size), "label": decode_label(label, classes, ignore_id, size)}
