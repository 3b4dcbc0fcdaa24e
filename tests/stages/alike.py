"""Pictures that are the same to a person, from one picture."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageEnhance


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of each side."""
    width, height = image.size
    x, y = round(width * share), round(height * share)
    return image.crop((x, y, width - x, height - y))


def resized(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "recompressed": lambda image: jpeg(image, 50),
    "recompressed hard": lambda image: jpeg(image, 20),
    "half the size": lambda image: jpeg(resized(image, 0.5)),
    "a quarter of the size": lambda image: jpeg(resized(image, 0.25)),
    "twice the size": lambda image: jpeg(resized(image, 2)),
    "squeezed": lambda image: jpeg(image.resize((image.width, image.height * 9 // 10))),
    "cropped by 1 %": lambda image: jpeg(cropped(image, 0.01)),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.15)),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.8)),
    "more contrast": lambda image: jpeg(ImageEnhance.Contrast(image).enhance(1.25)),
    "less colour": lambda image: jpeg(ImageEnhance.Color(image).enhance(0.4)),
    "grey": lambda image: jpeg(image.convert("L")),
    "palette": lambda image: png(image.quantize(128)),
}
