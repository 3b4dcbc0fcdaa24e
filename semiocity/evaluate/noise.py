"""The noise an image starts from: a function of (seed, layout key, number of the image), not of batch or task.

The three make the 128-bit key of a counter-based generator (Philox; Salmon et al. 2011). Manifests name it as the
image's own `seed`. Its counter tells the starting noise from that of each step.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from semiocity.files import canonical

START = 2**32
"""Stream of the starting noise; the stream of a step is its index in the schedule, always below."""


def image_seed(seed: int, key: str, number: int) -> str:
    """Seed of one image: 32 hex digits."""
    return hashlib.sha256(canonical([seed, key, number]).encode()).hexdigest()[:32]


def normal(seed: str, shape: tuple[int, ...], stream: int = START) -> NDArray[np.float32]:
    """Standard normal noise of an image, fp32, of any shape."""
    key = np.array([int(seed[:16], 16), int(seed[16:], 16)], dtype=np.uint64)
    counter = np.array([0, 0, stream, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(shape, dtype=np.float32)
