"""Small files that unpack to large ones: refused by their headers, in every place where they can hide."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from make_images import CLASSES, bomb, encoded, jpeg, pack_folder, pixels, png, write_files
from PIL import Image

SIDE = 12_000
MAX_PIXELS = 1_000_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A good PNG with a further chunk before its pixels."""
    whole = png()
    at = whole.index(b"IDAT") - 4
    return whole[:at] + chunk(kind, data) + whole[at:]


def text_bomb() -> bytes:
    return with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300_000_000), 9))


def profile_bomb() -> bytes:
    return with_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300_000_000), 9))


def gif_bomb() -> bytes:
    """A screen of 8 x 8 with a frame far beyond it."""
    data = bytearray(encoded(Image.fromarray(pixels(8, 8)), "GIF"))
    frame = data.index(b",\0\0\0\0")
    data[frame + 5 : frame + 9] = struct.pack("<HH", SIDE, SIDE)
    return bytes(data)


def webp_bomb() -> bytes:
    """An animation whose canvas is 12,000 x 12,000 and whose frames are small."""
    frames = [Image.fromarray(pixels(48, 32, seed)) for seed in range(2)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (SIDE - 1).to_bytes(3, "little") * 2
    return bytes(data)


def tiff_bomb() -> bytes:
    return encoded(Image.new("1", (SIDE, SIDE)), "TIFF", compression="group4")


def tile_bomb() -> bytes:
    """A TIFF of 64 x 64 in one tile of 2^19 x 2^19."""
    pairs = [
        (256, 3, 64),
        (257, 3, 64),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, 1 << 19),
        (323, 4, 1 << 19),
        (324, 4, 8),
        (325, 4, 100),
    ]
    body = zlib.compress(bytes(1000)).ljust(100, b"\0")
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in pairs)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(pairs)) + table + bytes(4)


BOMBS: dict[str, Callable[[], bytes]] = {
    "header.png": lambda: bomb(SIDE),
    "text.png": text_bomb,
    "profile.png": profile_bomb,
    "frame.gif": gif_bomb,
    "canvas.webp": webp_bomb,
    "bits.tif": tiff_bomb,
    "tile.tif": tile_bomb,
}


def test_bombs_are_refused(tmp_path: Path) -> None:
    files = {name: make() for name, make in BOMBS.items()}
    assert max(map(len, files.values())) < 1_000_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, rejected = pack_folder(
        write_files(tmp_path / "in", {**files, "good.jpg": jpeg()}), tmp_path / "out", image={"max_pixels": MAX_PIXELS}
    )
    assert list(rows) == ["good.jpg"]
    assert {name: reason for name, (reason, _) in rejected.items()} == dict.fromkeys(files, "image_too_large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 60_000, "kB"


@pytest.mark.parametrize("field", ["label", "instance"])
@pytest.mark.parametrize("other_size", ["reject", "resize"])
def test_bombs_in_maps_are_refused(tmp_path: Path, field: str, other_size: str) -> None:
    sink = io.BytesIO()
    Image.new("L", (4000, 4000)).save(sink, "PNG")
    files = {"a.jpg": jpeg(), f"a.{field}.png": sink.getvalue(), "b.jpg": jpeg(), f"b.{field}.png": bomb(2**31 - 1)}
    recipe = {"classes": CLASSES, "label": {"other_size": other_size}, "image": {"max_pixels": MAX_PIXELS}}
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", **recipe)
    assert rows == {}
    assert {reason for reason, _ in rejected.values()} == {f"{field}_too_large"}
