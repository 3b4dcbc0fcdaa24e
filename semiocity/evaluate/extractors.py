"""Feature extractors: what Fréchet distance and KID are computed on. Each carries the name that scores give."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from semiocity.data.loader import to_unit
from semiocity.errors import UserError
from semiocity.evaluate.images import Pixels
from semiocity.models.segmenter import Segmenter

INCEPTION_SIDE = 299


class Extractor(Protocol):
    """From pictures to feature vectors."""

    name: str
    """Says exactly what it is: scores of different extractors cannot be compared."""

    def __call__(self, images: Pixels) -> NDArray[np.float32]:
        """[B, H, W, 3] to [B, D]."""


class SegmenterFeatures:
    """The judge's deepest feature map, averaged over pixels. Compares images of one dataset, not across papers."""

    def __init__(self, model: Segmenter, name: str, device: torch.device) -> None:
        self.model, self.device = model, device
        self.name = f"{name}, mean of the deepest map ({model.feature_width})"

    @torch.no_grad()
    def __call__(self, images: Pixels) -> NDArray[np.float32]:
        return self.model.features(to_unit(torch.from_numpy(images)).to(self.device)).cpu().numpy()


class InceptionFeatures:
    """The 2048 pooled features of Inception v3 (Szegedy et al. 2016, arXiv 1512.00567), pictures resized to 299².

    torchvision's architecture and weights: distances are close to those of the original TensorFlow graph, not equal.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        """UserError when `weights` is no state dict of torchvision's inception_v3."""
        from torchvision.models import inception_v3

        # The auxiliary classifier is for training; its weights may be there or not.
        model = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        state = {name: value for name, value in _state_dict(weights).items() if not name.startswith("AuxLogits.")}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"extractor.weights: {weights} is no state dict of torchvision's inception_v3: {str(error)[:300]}"
            ) from None
        model.fc = nn.Identity()
        self.model: nn.Module = model.to(device).eval()
        self.device = device
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.name = f"inception_v3 of torchvision, weights {digest[:12]}, bicubic to {INCEPTION_SIDE} (2048)"

    @torch.no_grad()
    def __call__(self, images: Pixels) -> NDArray[np.float32]:
        return self.model(self._prepared(images)).cpu().numpy()

    def _prepared(self, images: Pixels) -> Tensor:
        # Inception was trained on pictures in [-1, 1]. Antialiasing matters when shrinking (Parmar et al. 2022,
        # arXiv 2104.11222).
        side = (INCEPTION_SIDE, INCEPTION_SIDE)
        unit = to_unit(torch.from_numpy(images)).to(self.device)
        return F.interpolate(unit, size=side, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _state_dict(weights: Path) -> dict[str, Any]:
    if not weights.is_file():
        raise UserError(f"extractor.weights: {weights}: no such file")
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(weights)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"extractor.weights: {weights}: not readable as weights: {str(error)[:200]}") from None
    if not isinstance(state, dict):
        raise UserError(f"extractor.weights: {weights}: holds a {type(state).__name__}, not a state dict")
    return state
