"""Pictures as they come, made into what shards hold; the rules are stated in README.md.

Every function raises Rejected, with a reason of `sources.reasons.REASONS`, for what cannot be used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, features

from semiocity.data.profiles import BrokenProfile, to_srgb
from semiocity.data.recipe import LARGEST_IMAGE, ImagePolicy
from semiocity.data.sources.reasons import REASONS
from semiocity.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
AVIF = (b"ftypavif", b"ftypavis")
"""Bytes 4 to 12 of such a file; Pillow reads them in its usual wheels since 11.3."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
WHITE = (255, 255, 255, 255)
TILE_WIDTH, TILE_LENGTH = 322, 323
"""Tags of TIFF 6.0, section 15."""
TOO_LONG = ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY")
"""What Pillow names where a PNG's texts or profile would unpack to more than it allows: 1 MiB each, 64 together."""


class Rejected(Exception):
    """A file that cannot be packed."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass
class Picture:
    """A decoded picture, upright, mode RGB or L."""

    pixels: Image.Image
    ext: str
    """jpg when it came as JPEG, else png."""
    data: bytes | None
    """Its file, as long as that may be stored as it is."""
    changes: list[str] = field(default_factory=list)
    """What was done to the pixels, for the row's json."""


def decode_image(data: bytes, max_pixels: int) -> Picture:
    """Decode to the last pixel and normalise. The size is checked before anything is decoded."""
    if not data:
        raise Rejected("image_empty", "zero bytes")
    formats: tuple[str, ...] = FORMATS
    if data[4:12] in AVIF:
        if not features.check("avif"):
            raise UserError(
                "there are AVIF pictures, and this Pillow was built without; install one of the usual wheels"
            )
        formats = ("AVIF",)
    image = _open(data, formats, "image_unknown", "image_damaged", "image_too_large")
    width, height = image.size
    if width * height > max_pixels:
        raise Rejected("image_too_large", f"{width}x{height} is more than max_pixels = {max_pixels}")
    kind = image.format
    if kind == "TIFF":
        _check_tiles(image, max_pixels)
    jpeg = kind in ("JPEG", "MPO")  # MPO: a JPEG followed by others, as stereo cameras write; the first counts
    changes: list[str] = []
    depth = _png_depth(data) if kind == "PNG" else 8
    mode = image.mode
    try:
        if not jpeg and getattr(image, "is_animated", False):
            changes.append("first frame")
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parsers ran into
        if any(name in str(error) for name in TOO_LONG):
            raise Rejected("image_too_large", str(error)) from None
        raise Rejected("image_damaged", f"{type(error).__name__}: {error}") from None
    if depth == 16:
        changes.append("16 bits to 8")
    notes: list[str] = []
    try:
        pixels = _to_rgb(image, changes, notes)
    except ValueError as error:  # a mode that Pillow reads and cannot convert
        raise Rejected("image_damaged", f"{image.mode}: {error}") from None
    if orientation in _TURNS:
        pixels = pixels.transpose(_TURNS[orientation])
        changes.append("orientation")
    untouched = not changes and (
        (jpeg and _plain_jpeg(data)) or (kind == "PNG" and depth == 8 and mode in ("RGB", "L"))
    )
    # What is only noted changed no pixel, and is no reason to encode again.
    return Picture(pixels, "jpg" if jpeg else "png", data if untouched else None, [*changes, *notes])


def _check_tiles(image: Any, max_pixels: int) -> None:
    """A TIFF's tiles are decoded whole, whatever the size of the picture."""
    wide, high = image.tag_v2.get(TILE_WIDTH, 1), image.tag_v2.get(TILE_LENGTH, 1)
    if not (isinstance(wide, int) and isinstance(high, int)) or wide * high > max_pixels:
        raise Rejected("image_too_large", f"tiles of {wide}x{high} are more than max_pixels = {max_pixels}")


@cache
def check_pillow() -> None:
    """Raises UserError when Pillow was built without a decoder: good pictures must not be rejected for that."""
    Image.init()
    absent = [name for name in FORMATS if name not in Image.OPEN]
    absent += [name for name in ("jpg", "zlib", "webp") if not features.check(name)]
    if absent:
        raise UserError(f"this Pillow was built without {', '.join(absent)}; install one of the usual wheels")


def _open(data: bytes, formats: tuple[str, ...], unknown: str, damaged: str, too_large: str) -> Image.Image:
    """Read the header only."""
    check_pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is checked by the caller
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        except Image.DecompressionBombError as error:
            raise Rejected(too_large, str(error)) from None
        except Image.UnidentifiedImageError:
            raise Rejected(unknown, f"begins with {data[:16]!r}") from None
        except MemoryError:
            raise
        except Exception as error:
            if any(name in str(error) for name in TOO_LONG):
                raise Rejected(too_large, str(error)) from None
            raise Rejected(damaged, f"{type(error).__name__}: {error}") from None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what brings the picture upright (Exif 2.3, tag 0x0112)."""


def _to_rgb(image: Image.Image, changes: list[str], notes: list[str]) -> Image.Image:
    """RGB or L in sRGB, whatever came: the high byte of 16 bits, colours by their profile, alpha over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if "16 bits to 8" not in changes:
            changes.append("16 bits to 8")
        if values.dtype != np.uint16:
            values = np.clip(values, 0, 65535).astype(np.uint16)
        return _by_profile(Image.fromarray((values >> 8).astype(np.uint8)), profile, changes, notes)
    if image.has_transparency_data:
        changes.append("alpha over white")
        rgba = image.convert("RGBA")
        grey = image.mode in ("L", "LA", "La")
        seen = _by_profile(rgba.convert("L" if grey else "RGB"), profile, changes, notes).convert("RGB")
        seen.putalpha(rgba.getchannel("A"))
        over = Image.new("RGBA", image.size, WHITE)
        over.alpha_composite(seen)
        return over.convert("RGB")
    if image.mode not in ("RGB", "L", "CMYK"):
        wanted = "L" if image.mode == "1" else "RGB"
        changes.append(f"{image.mode} to {wanted}")
        image = image.convert(wanted)
    plain = _by_profile(image, profile, changes, notes)
    if plain.mode == "CMYK":
        changes.append("CMYK to RGB")
        return plain.convert("RGB")
    return plain


def _by_profile(image: Image.Image, profile: bytes | None, changes: list[str], notes: list[str]) -> Image.Image:
    """The picture (RGB, L or CMYK) in sRGB, if it has a profile that is any good; a broken one is only noted."""
    if not profile:
        return image
    try:
        made = to_srgb(image, profile)
    except BrokenProfile as error:
        notes.append(str(error))
        return image
    if made is None:
        return image
    changes.append("CMYK to sRGB by its profile" if image.mode == "CMYK" else "colour profile to sRGB")
    return made


def _png_depth(data: bytes) -> int:
    """Bits a channel as the header says (PNG specification, IHDR)."""
    return data[24]


def _plain_jpeg(data: bytes) -> bool:
    """Whether a JPEG is coded as every decoder reads it: baseline, extended or progressive, Huffman."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker in (0xC0, 0xC1, 0xC2) and data[at + 4] == 8
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


# ---------------------------------------------------------------- label and instance maps


def decode_ids(data: bytes, field: str, bits: int, max_pixels: int = LARGEST_IMAGE) -> np.ndarray:
    """A map of ids as the PNG holds them: [H, W], uint8 (`bits` 8) or uint16 (16). Palettes are read by index."""
    image = _open_map(data, field, max_pixels)
    depth, colour = data[24], data[25]
    if colour not in (0, 3) or (colour == 0 and depth not in (8, bits)):
        name = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}.get(colour, str(colour))
        hint = ' (colour-coded maps: label.encoding = "colors")' if field == "label" and colour in (2, 6) else ""
        raise Rejected(f"{field}_format", f"{depth}-bit {name} PNG{hint}")
    return np.asarray(_loaded(image, field)).astype(np.uint8 if bits == 8 else np.uint16)


def decode_colors(
    data: bytes, colors: list[tuple[int, int, int]], ignore_id: int | None, max_pixels: int
) -> np.ndarray:
    """A colour-coded label map as ids, uint8 [H, W]. Black is the ignore id unless a class is black."""
    rgb = np.asarray(_loaded(_open_map(data, "label", max_pixels), "label").convert("RGB"), dtype=np.uint32)
    code = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    table = {r << 16 | g << 8 | b: i for i, (r, g, b) in enumerate(colors)}
    if ignore_id is not None:
        table.setdefault(0, ignore_id)
    found, inverse = np.unique(code, return_inverse=True)
    for value in found.tolist():
        if value not in table:
            raise Rejected("label_color", f"({value >> 16}, {value >> 8 & 255}, {value & 255}) is no class's colour")
    return np.array([table[v] for v in found.tolist()], dtype=np.uint8)[inverse].reshape(code.shape)


def check_ids(ids: np.ndarray, allowed: Collection[int]) -> None:
    """Raises Rejected naming the first id outside `allowed`."""
    for value in np.unique(ids).tolist():
        if value not in allowed:
            count = int((ids == value).sum())
            raise Rejected("label_range", f"id {value} in {count} pixels; allowed are {_ranges(allowed)}")


def id_table(meanings: Mapping[int, int]) -> np.ndarray:
    """uint8 [256] to look up what ids mean; ids that `check_ids` refuses become 0."""
    table = np.zeros(256, np.uint8)
    table[list(meanings)] = list(meanings.values())
    return table


def _ranges(ids: Collection[int]) -> str:
    ordered = sorted(ids)
    whole = [i for i in ordered if i < len(ordered)]
    return ", ".join([f"0 to {len(whole) - 1}" if whole else "", *(str(i) for i in ordered[len(whole) :])]).strip(", ")


def _open_map(data: bytes, field: str, max_pixels: int) -> Image.Image:
    if not data.startswith(PNG_SIGNATURE):
        raise Rejected(f"{field}_format", "no PNG" if data else "zero bytes")
    image = _open(data, ("PNG",), f"{field}_format", f"{field}_damaged", f"{field}_too_large")
    if image.width * image.height > max_pixels:
        raise Rejected(f"{field}_too_large", f"{image.width}x{image.height} is more than max_pixels = {max_pixels}")
    return image


def _loaded(image: Image.Image, field: str) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise Rejected(f"{field}_damaged", f"{type(error).__name__}: {error}") from None
    return image


# ---------------------------------------------------------------- encoding


def encode_image(picture: Picture, policy: ImagePolicy) -> tuple[str, bytes]:
    """(extension, bytes): the original file where nothing needs changing, else JPEG 4:4:4 or PNG."""
    wanted = picture.ext if policy.format == "keep" else policy.format
    if picture.data is not None and picture.ext == wanted:
        return wanted, picture.data
    sink = io.BytesIO()
    if wanted == "jpg":
        picture.pixels.save(sink, "JPEG", quality=policy.quality, subsampling=0, exif=b"", icc_profile=None)
    else:
        picture.pixels.save(sink, "PNG", compress_level=6, exif=None, icc_profile=None)
    return wanted, sink.getvalue()


def encode_ids(ids: np.ndarray) -> bytes:
    """A map of ids as grey PNG, 8 or 16 bits by its dtype."""
    sink = io.BytesIO()
    Image.fromarray(ids).save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def picture_from_array(pixels: Any) -> Picture:
    """A picture that a source made: uint8 [H, W, 3]."""
    return Picture(Image.fromarray(pixels), "png", None)
