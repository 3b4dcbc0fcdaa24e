"""How much the images of one layout differ from each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from semiocity.data.loader import to_unit
from semiocity.evaluate.images import Pixels
from semiocity.models.segmenter import Segmenter

DISTANCE = "LPIPS without learned weights, on the maps of the segmenter's levels"


def perceptual(model: Segmenter, images: Pixels, device: torch.device) -> Tensor:
    """Distances [B, B] between images [B, H, W, 3], float64.

    As LPIPS (Zhang et al. 2018, arXiv 1801.03924, eq. 1): at each level the feature vector of every pixel is brought to
    length 1, squared differences are summed over channels and averaged over pixels; then the mean over levels. All
    channels weigh the same. 0 for equal images, at most 2.
    """
    with torch.no_grad():
        maps = model.maps(to_unit(torch.from_numpy(images)).to(device))
    levels = []
    for level in maps:
        unit = F.normalize(level.double(), dim=1).flatten(1) / (level.shape[2] * level.shape[3]) ** 0.5
        inner = unit @ unit.T
        squares = inner.diagonal()
        levels.append((squares[:, None] + squares[None] - 2 * inner).clamp(min=0))
    return torch.stack(levels).mean(0).cpu()


def mean_pair(distances: Tensor) -> float:
    """Mean over all pairs of different rows of a symmetric matrix [B, B], B at least 2."""
    pairs = list(combinations(range(len(distances)), 2))
    return float(torch.stack([distances[i, j] for i, j in pairs]).mean())


def pixel_rms(images: Pixels) -> float:
    """Root mean square difference of values in 0 … 255, mean over the pairs of [B, H, W, 3]."""
    values = images.astype(np.float64)
    return float(np.mean([np.sqrt(np.square(a - b).mean()) for a, b in combinations(values, 2)]))
