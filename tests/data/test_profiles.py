"""Colour profiles: converted to sRGB by what they say, or left alone."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from make_images import decoded, encoded, jpeg, pack_folder, pixels, write_files
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 with these tags (ICC.1:2001-04, section 6)."""
    text = b"text\0\0\0\0none\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(8 + 3 + 67)
    white = b"XYZ \0\0\0\0" + s15(0.9642) + s15(1.0) + s15(0.8249)
    tags = {b"desc": description, b"cprt": text, b"wtpt": white, **tags}
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = struct.pack(">I", offset + len(body)) + b"lcms" + bytes.fromhex("02400000") + kind + space + pcs
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(64, b"\0") + struct.pack(">I", 0) + s15(0.9642) + s15(1.0) + s15(0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def rgb_profile(exponent: float, swap: bool = False) -> bytes:
    """sRGB's primaries (or red and blue exchanged) with another gamma."""
    red, green, blue = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
    if swap:
        red, blue = blue, red
    primaries = {
        name: b"XYZ \0\0\0\0" + b"".join(map(s15, xyz))
        for name, xyz in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))
    }
    return profile(b"RGB ", {**primaries, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(exponent))})


def cmyk_profile() -> bytes:
    """A printer whose cyan prints red: L*a*b* in the corners of a table of two points a channel."""
    table = b""
    for corner in range(16):
        cyan, key = corner >> 3 & 1, corner & 1
        lightness = 0 if key else (140 if cyan else 255)
        table += bytes([lightness, 128 + (70 if cyan and not key else 0), 128 + (50 if cyan and not key else 0)])
    ramp = bytes(range(256))
    matrix = b"".join(s15(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + table + ramp * 3
    return profile(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, kind=b"prtr", pcs=b"Lab ")


def test_a_profile_is_applied(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(48, 32))
    files = {
        "gamma.jpg": jpeg(icc_profile=rgb_profile(1.0)),
        "swapped.png": encoded(picture, "PNG", icc_profile=rgb_profile(2.2, swap=True)),
        "lossless.webp": encoded(picture, "WEBP", lossless=True, icc_profile=rgb_profile(2.2, swap=True)),
        "scan.tif": encoded(picture, "TIFF", icc_profile=rgb_profile(2.2, swap=True)),
        "grey.png": encoded(picture.convert("L"), "PNG", icc_profile=profile(b"GRAY", {b"kTRC": gamma(1.0)})),
        "cyan.jpg": encoded(
            Image.new("CMYK", (48, 32), (255, 0, 0, 0)), "JPEG", quality=95, icc_profile=cmyk_profile()
        ),
    }
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert rejected == {}
    changes = {name: row["meta"]["changes"] for name, row in rows.items()}
    converted = ["colour profile to sRGB"]
    assert changes == {**dict.fromkeys(files, converted), "cyan.jpg": ["CMYK to sRGB by its profile"]}
    for row in rows.values():
        assert not Image.open(io.BytesIO(row["image"])).info.get("icc_profile"), "it is sRGB now"
    assert decoded(rows["gamma.jpg"]["image"]).mean() > decoded(files["gamma.jpg"]).mean() + 20
    swapped = pixels(48, 32)[..., ::-1].astype(int)
    for name in ("swapped.png", "lossless.webp", "scan.tif"):
        assert np.abs(decoded(rows[name]["image"]).astype(int) - swapped).mean() < 4, name
    grey = decoded(rows["grey.png"]["image"])
    assert grey.ndim == 2 and grey.mean() > decoded(files["grey.png"]).mean() + 20
    red, green, blue = decoded(rows["cyan.jpg"]["image"]).reshape(-1, 3).mean(axis=0)
    assert red > green + 80 and red > blue + 80, "by its profile this cyan is red"


def test_alpha_palette_and_depth_take_their_profile_along(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(48, 32))
    clear = picture.copy()
    clear.putalpha(Image.fromarray(np.tile(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8), (32, 1))))
    swap = rgb_profile(2.2, swap=True)
    files = {
        "alpha.png": encoded(clear, "PNG", icc_profile=swap),
        "palette.png": encoded(picture.quantize(64), "PNG", icc_profile=swap),
        "deep.png": encoded(
            Image.fromarray(pixels(48, 32)[..., 0].astype(np.uint16) << 8),
            "PNG",
            icc_profile=profile(b"GRAY", {b"kTRC": gamma(1.0)}),
        ),
    }
    rows, _ = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert all("colour profile to sRGB" in row["meta"]["changes"] for row in rows.values())
    alpha = decoded(rows["alpha.png"]["image"]).astype(int)
    assert (alpha[:, :24] == 255).all(), "white stays white"
    assert np.abs(alpha[:, 24:] - pixels(48, 32)[:, 24:, ::-1]).mean() < 4
    assert decoded(rows["deep.png"]["image"]).mean() > pixels(48, 32)[..., 0].mean() + 20


@pytest.mark.parametrize("name", ["srgb", "nearly", "none"])
def test_srgb_passes_byte_for_byte(tmp_path: Path, name: str) -> None:
    given = {"srgb": SRGB, "nearly": SRGB[:4] + b"test" + SRGB[8:], "none": None}[name]
    data = jpeg(icc_profile=given) if given else jpeg()
    files = {"a.jpg": data, "b.png": encoded(Image.fromarray(pixels(48, 32)), "PNG", icc_profile=given or SRGB)}
    rows, _ = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert {file: row["image"] for file, row in rows.items()} == files
    assert all(row["meta"]["changes"] == [] for row in rows.values())


def test_a_broken_profile_is_noted_and_changes_nothing(tmp_path: Path) -> None:
    files = {
        "broken.jpg": jpeg(icc_profile=b"no profile at all"),
        "cut.jpg": jpeg(icc_profile=SRGB[:200]),
        "misfit.jpg": jpeg(icc_profile=cmyk_profile()),
        "cmyk.jpg": encoded(Image.fromarray(pixels(48, 32)).convert("CMYK"), "JPEG", icc_profile=b"broken"),
    }
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert rejected == {}
    broken = ["colour profile ignored: broken"]
    assert {name: row["meta"]["changes"] for name, row in rows.items()} == {
        "broken.jpg": broken,
        "cut.jpg": broken,
        "misfit.jpg": ["colour profile ignored: of another colour space"],
        "cmyk.jpg": ["CMYK to RGB", *broken],
    }
    for name in ("broken.jpg", "cut.jpg", "misfit.jpg"):
        assert rows[name]["image"] == files[name]
