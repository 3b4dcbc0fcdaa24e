"""Object detectors of `transformers`, for blurring: loaded from local folders as they are published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)

from semiocity.data.blur import Transformers
from semiocity.data.sources.base import Entry
from semiocity.errors import UserError

Box = tuple[float, float, float, float]


class Detector:
    """A model, loaded. Calling it gives the boxes of one picture."""

    def __init__(self, settings: Transformers) -> None:
        self.settings = settings
        zero_shot = settings.task == "zero-shot-object-detection"
        # transformers' annotations do not cover its own models.
        processor: Any = AutoProcessor if zero_shot else AutoImageProcessor
        model: Any = AutoModelForZeroShotObjectDetection if zero_shot else AutoModelForObjectDetection
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.processor = processor.from_pretrained(settings.path, **options)
            loaded = model.from_pretrained(settings.path, use_safetensors=True, dtype=torch.float32, **options)
        except (OSError, ValueError) as error:
            raise UserError(
                f"blur.detector.path: {settings.path} cannot be loaded for {settings.task}: {error}"
            ) from None
        self.model = loaded.to(settings.device).eval()
        if not zero_shot:
            self.wanted = _ids(self.model.config.id2label, settings)

    @torch.inference_mode()
    def __call__(self, entry: Entry, image: Image.Image) -> Sequence[Box]:
        """Left, top, right, bottom in pixels of everything wanted above the threshold."""
        picture = image.convert("RGB")
        sizes = [(picture.height, picture.width)]
        if self.settings.task == "object-detection":
            inputs = self.processor(images=picture, return_tensors="pt").to(self.settings.device)
            output = self.model(**inputs)
            found = self.processor.post_process_object_detection(
                output, threshold=self.settings.threshold, target_sizes=sizes
            )[0]
            keep = [int(label) in self.wanted for label in found["labels"]]
        else:
            inputs, found = self._search(picture, sizes)
            keep = [True] * len(found["scores"])
        return [tuple(box) for box, kept in zip(found["boxes"].tolist(), keep, strict=True) if kept]

    def _search(self, picture: Image.Image, sizes: list[tuple[int, int]]) -> tuple[Any, dict[str, Any]]:
        """Grounding DINO takes one sentence with full stops, OWL-ViT a list of texts; each reads its own output."""
        labels = list(self.settings.labels)
        inputs = self.processor(text=[labels], images=picture, return_tensors="pt").to(self.settings.device)
        output = self.model(**inputs)
        finish = self.processor.post_process_grounded_object_detection
        return inputs, finish(output, threshold=self.settings.threshold, target_sizes=sizes)[0]


def load_detector(settings: Transformers) -> Detector:
    """The detector of a recipe. Raises UserError for a folder that cannot be loaded, or unknown labels."""
    return Detector(settings)


def _ids(names: dict[int, str], settings: Transformers) -> set[int]:
    if not settings.labels:
        return set(names)
    if unknown := set(settings.labels) - set(names.values()):
        raise UserError(
            f"blur.detector.labels: {settings.path} finds no {sorted(unknown)[0]!r}; it finds "
            f"{', '.join(names.values())}"
        )
    return {number for number, name in names.items() if name in settings.labels}
