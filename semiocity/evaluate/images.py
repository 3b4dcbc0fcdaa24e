"""Pictures in and out: real pairs of a dataset at one size, generated images of a manifest, PNG bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.geometry import plan_geometry, resize_ids, resize_image
from semiocity.data.loader import Arrays, Rows
from semiocity.data.recipe import ImagePolicy
from semiocity.errors import UserError
from semiocity.files import digest, read_json

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

IMAGE, LABEL = "base.image", "base.label"
RESIZE = "cut to the shape in the middle, then Lanczos; labels: most frequent id of a cell, or nearest"
"""What is done to pictures of another size, as protocols say it."""
CACHE_MB = 1024


class Pairs:
    """Real images and their label maps of one split, at one size, decoded when asked for."""

    def __init__(self, dataset: Dataset, split: str, size: Size, rows: list[int] | None = None) -> None:
        """`rows` picks rows of the split's view, in that order; None takes all."""
        self.classes = tuple(dataset.classes)
        self.ignore_id = dataset.ignore_id
        self.size = size
        self._view = dataset.view([IMAGE, LABEL], split)
        self.rows = list(range(len(self._view))) if rows is None else rows
        if not self.rows:
            raise UserError(f"{dataset.path}: split {split!r} has no rows with {IMAGE} and {LABEL}")
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


def decode_image(data: bytes, size: Size | None = None) -> Pixels:
    """A picture as uint8 [H, W, 3], brought to `size` as `RESIZE` says. ValueError or OSError when it is damaged."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    geometry = size and plan_geometry(_policy(size), *image.size)
    return np.array(resize_image(image, geometry) if geometry else image)


def decode_label(data: bytes, classes: int, ignore_id: int | None, size: Size | None = None) -> Pixels:
    """A label map as uint8 [H, W], brought to `size` as `RESIZE` says. ValueError when an id is out of range."""
    ids = np.array(Image.open(io.BytesIO(data)))
    geometry = size and plan_geometry(_policy(size), ids.shape[1], ids.shape[0])
    if geometry:
        ids = resize_ids(ids, geometry, pad=0)
    wrong = [value for value in np.unique(ids).tolist() if value >= classes and value != ignore_id]
    if wrong:
        raise ValueError(f"label map holds id {wrong[0]}; there are {classes} classes, and the ignored id is {ignore_id}")
    return ids


def encode_png(pixels: Pixels) -> bytes:
    """[H, W, 3] or [H, W], uint8, as PNG: the same bytes for the same pixels and Pillow version."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def pixels_digest(pixels: Pixels) -> str:
    """sha256 over shape and values: tells a different picture from the same one compressed differently."""
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def colored(labels: Pixels, palette: Sequence[Sequence[int]], ignored: Sequence[int] = (0, 0, 0)) -> Pixels:
    """Label ids [H, W] in the colours of their classes [H, W, 3]; ids beyond the palette in `ignored`."""
    table = np.full((256, 3), ignored, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def _policy(size: Size) -> ImagePolicy:
    return ImagePolicy(resize="crop", size=(size[1], size[0]))


def _decode(size: Size, classes: int, ignore_id: int | None, row: Mapping[str, bytes | None]) -> Arrays:
    image, label = row[IMAGE], row[LABEL]
    if image is None or label is None:
        raise ValueError(f"no {IMAGE if image is None else LABEL}")
    return {"image": decode_image(image, size), "label": decode_label(label, classes, ignore_id, size)}


class Samples:
    """The generated images that a manifest lists."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds manifest.json. UserError when it does not, or lists nothing."""
        self.folder = folder
        path = folder / "manifest.json"
        try:
            self.manifest: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; `semiocity generate` makes it when all images are there") from None
        self.layouts: dict[str, list[dict[str, Any]]] = {}
        """Key of a layout -> its images, by number."""
        for image in self.manifest["images"]:
            self.layouts.setdefault(image["key"], []).append(image)
        if not self.layouts:
            raise UserError(f"{path}: lists no images")

    @property
    def size(self) -> Size:
        height, width = self.manifest["size"]
        return height, width

    @property
    def images_per_layout(self) -> int:
        """The same for every layout."""
        return int(self.manifest["images_per_layout"])

    def read(self, image: dict[str, Any]) -> Pixels:
        """The pixels of one entry of the manifest: [H, W, 3]. UserError when the file is not what was generated."""
        path = self.folder / image["file"]
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: missing, though the manifest lists it; run `semiocity generate` again") from None
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise UserError(f"{path}: changed since it was generated; remove its folder and run `semiocity generate`")
        return decode_image(data)
