"""Payloads of the base column as arrays. Every function raises BadRow with a reason that is the same every time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from semiocity.data import decode as payloads
from semiocity.data.decode import DecodeError
from semiocity.stages.base import BadRow, Made, Row, Tombstone


def decode_rgb(data: bytes) -> np.ndarray:
    """A picture as uint8 [H, W, 3], the caller's own."""
    try:
        return payloads.decode_rgb(data)
    except DecodeError as error:
        raise BadRow(f"image cannot be decoded: {error}") from None


def decode_ids(data: bytes, what: str) -> np.ndarray:
    """A label or instance map as it is stored: [H, W], uint8 or uint16."""
    try:
        return payloads.decode_ids(data)
    except DecodeError as error:
        raise BadRow(f"{what} cannot be decoded: {error}") from None


def decode(data: bytes, what: str) -> Image.Image:
    """A picture, decoded to its last pixel. `what` names it in the reason when that fails."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parsers ran into
        # Pillow names the stream by its address.
        detail = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))
        raise BadRow(f"{what} cannot be decoded: {detail}") from None
    return image


Decoded = TypeVar("Decoded")


def decode_rows(
    rows: list[Row], decode: Callable[[Row], Decoded]
) -> tuple[list[tuple[int, Decoded]], dict[int, Made | Tombstone]]:
    """Decode a batch: (place, decoded) of the rows that can be used, and place → tombstone of the others."""
    good: list[tuple[int, Decoded]] = []
    bad: dict[int, Made | Tombstone] = {}
    for place, row in enumerate(rows):
        try:
            good.append((place, decode(row)))
        except BadRow as error:
            bad[place] = Tombstone("permanent", str(error))
    return good, bad


def payload(row: Row, field: str) -> bytes:
    """A field that the stage needs; the runner has seen to it that it is there."""
    data = row.fields[field]
    assert data is not None, f"{row.key}: {field}"
    return data
