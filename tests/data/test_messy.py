"""Input as it arrives in real life: normalised by a stated rule, or rejected with a reason, and the counts add up."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_images import CLASSES, bomb, dice, encoded, folder_recipe, jpeg, label_png, packed, pixels, png
from PIL import Image, ImageCms

from semiocity.data import plan as plan_module
from semiocity.data.columns import Dataset
from semiocity.data.geometry import plan_geometry, resize_ids, resize_image, resize_instances, scale_ids
from semiocity.data.images import Rejected, decode_image
from semiocity.data.keys import Key, key_of, to_text
from semiocity.data.plan import make_plan
from semiocity.data.recipe import ImagePolicy, Recipe
from semiocity.data.sources.reasons import REASONS
from semiocity.data.verify import verify
from semiocity.errors import UserError


def pack(root: Path, out: Path, **changes: Any) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """Pack a folder. Rows by original file (fields, meta, scalars), and rejections by file (reason, detail)."""
    plan, dataset = packed(folder_recipe(root, **changes), out)
    fields = [f"base.{name}" for name in dataset.column("base").fields]
    view = dataset.view(fields)
    rows = {}
    for i in range(len(view)):
        row = {name.removeprefix("base."): data for name, data in view.read(i).items()}
        meta = json.loads(row.pop("meta"))
        rows[meta["file"]] = {**row, "meta": meta, "key": view.key(i)}
    lines = (plan.folder / "rejected.jsonl").read_text().splitlines()
    rejected = {item["id"]: (item["reason"], item["detail"]) for item in map(json.loads, lines)}
    assert len(rows) + len(rejected) == plan.files_seen, "every file is packed or rejected"
    assert {reason for reason, _ in rejected.values()} <= set(REASONS)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rejected"] == dict(Counter(reason for reason, _ in rejected.values()))
    assert manifest["rows"] == len(rows)
    assert verify(out) == []
    return rows, rejected


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def decoded(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)))


# ---------------------------------------------------------------- pictures that cannot be used

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (lambda: jpeg()[: len(jpeg()) // 2], "image_damaged"),
    "cut.png": (lambda: png()[: len(png()) // 2], "image_damaged"),
    "no header.jpg": (lambda: jpeg()[:20], "image_unknown"),
    "empty.jpg": (lambda: b"", "image_empty"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html>404</html>", "image_unknown"),
    "text.png": (lambda: b"not a picture at all", "image_unknown"),
    "zeros.jpg": (lambda: bytes(5000), "image_unknown"),
    "bomb.png": (bomb, "image_too_large"),
    "huge bomb.png": (lambda: bomb(2**31 - 1), "image_too_large"),
    "broken chunk.png": (lambda: png()[:60] + b"\xff" + png()[61:], "image_damaged"),
    "big.jpg": (lambda: jpeg(400, 300), "image_too_large"),
}


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {name: make() for name, (make, _) in BAD.items()} | {"good.jpg": jpeg()})
    rows, rejected = pack(root, tmp_path / "out", image={"max_pixels": 100_000})
    assert list(rows) == ["good.jpg"]
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    assert "400x300" in rejected["big.jpg"][1]
    assert "<!DOCTYPE html" in rejected["page.jpg"][1]


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(Rejected) as error:
        decode_image(bomb(9000), max_pixels=80_000_000)
    assert error.value.reason == "image_too_large"


# ---------------------------------------------------------------- pictures that are normalised


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(48, 32, seed)) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def with_alpha() -> bytes:
    rgba = np.dstack([pixels(48, 32), np.full((32, 48), 255, np.uint8)])
    rgba[:, :24, 3] = 0
    return encoded(Image.fromarray(rgba), "PNG")


def deep_grey() -> bytes:
    return encoded(Image.fromarray((pixels(48, 32)[..., 0].astype(np.uint16) << 8) + 77), "PNG")


def deep_rgb() -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write: made from an 8-bit one by hand."""
    rows = pixels(48, 32)
    raw = b"".join(b"\0" + np.repeat(row.reshape(-1), 2).tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (48).to_bytes(4, "big") + (32).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


NORMALISED: dict[str, tuple[Callable[[], bytes], str, list[str]]] = {
    "cmyk.jpg": (
        lambda: encoded(Image.fromarray(pixels(48, 32)).convert("CMYK"), "JPEG", quality=95),
        "jpg",
        ["CMYK to RGB"],
    ),
    "turned.jpg": (lambda: oriented(6), "jpg", ["orientation"]),
    "deep grey.png": (deep_grey, "png", ["16 bits to 8"]),
    "deep rgb.png": (deep_rgb, "png", ["16 bits to 8"]),
    "palette.png": (lambda: encoded(Image.fromarray(pixels(48, 32)).quantize(64), "PNG"), "png", ["P to RGB"]),
    "alpha.png": (with_alpha, "png", ["alpha over white"]),
    "bits.png": (lambda: encoded(Image.fromarray(pixels(48, 32)).convert("1"), "PNG"), "png", ["1 to RGB"]),
    "animated.gif": (lambda: animated("GIF"), "png", ["first frame"]),
    "moving.webp": (lambda: animated("WEBP"), "png", ["first frame"]),
    "flat.webp": (lambda: encoded(Image.fromarray(pixels(48, 32)), "WEBP", lossless=True), "png", []),
    "old.bmp": (lambda: encoded(Image.fromarray(pixels(48, 32)), "BMP"), "png", []),
    "scan.tif": (lambda: encoded(Image.fromarray(pixels(48, 32)), "TIFF"), "png", []),
    "really a png.jpg": (lambda: png(), "png", []),
}


def test_pictures_that_are_normalised(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {name: make() for name, (make, _, _) in NORMALISED.items()})
    rows, rejected = pack(root, tmp_path / "out")
    assert rejected == {}
    for name, (_, kind, changes) in NORMALISED.items():
        image = Image.open(io.BytesIO(rows[name]["image"]))
        assert image.format == {"jpg": "JPEG", "png": "PNG"}[kind], name
        assert image.mode in ("RGB", "L"), name
        assert rows[name]["meta"]["changes"][: len(changes)] == changes, name
        assert not image.getexif(), name
    for name in ("flat.webp", "old.bmp", "scan.tif", "really a png.jpg", "deep rgb.png", "moving.webp"):
        assert np.array_equal(decoded(rows[name]["image"]), pixels(48, 32)), name
    assert np.array_equal(decoded(rows["deep grey.png"]["image"]), pixels(48, 32)[..., 0])
    alpha = decoded(rows["alpha.png"]["image"])
    assert (alpha[:, :24] == 255).all(), "white shows where alpha is 0"
    assert np.array_equal(alpha[:, 24:], pixels(48, 32)[:, 24:])
    assert np.abs(decoded(rows["cmyk.jpg"]["image"]).astype(int) - pixels(48, 32)).mean() < 8


def test_orientation_is_applied(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {f"{n}.jpg": oriented(n) for n in range(1, 9)})
    rows, _ = pack(root, tmp_path / "out", image={"format": "png"})
    stored = np.asarray(Image.open(io.BytesIO(jpeg())))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    for number, expected in upright.items():
        row = rows[f"{number}.jpg"]
        assert np.array_equal(decoded(row["image"]), expected), number
        assert (row["meta"]["width"], row["meta"]["height"]) == expected.shape[1::-1]


def test_what_needs_no_change_is_stored_byte_for_byte(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "baseline.jpg": jpeg(),
        "progressive.jpg": jpeg(progressive=True),
        "grey.jpg": encoded(Image.fromarray(pixels(48, 32)[..., 0]), "JPEG"),
        "upright.jpg": oriented(1),
        "profile.jpg": jpeg(icc_profile=profile),
        "restart.JPEG": jpeg(restart_marker_blocks=2),
        "rgb.png": png(),
        "lossless grey.png": encoded(Image.fromarray(pixels(48, 32)[..., 0]), "PNG"),
    }
    rows, rejected = pack(write(tmp_path / "in", files), tmp_path / "out")
    assert rejected == {}
    assert {name: row["image"] for name, row in rows.items()} == files
    assert all(row["meta"]["changes"] == [] for row in rows.values())


def test_the_same_picture_twice_is_two_rows(tmp_path: Path) -> None:
    rows, rejected = pack(write(tmp_path / "in", {"a.jpg": jpeg(), "b.jpg": jpeg()}), tmp_path / "out")
    assert sorted(rows) == ["a.jpg", "b.jpg"]
    assert rejected == {}


# ---------------------------------------------------------------- names


def test_names_in_any_encoding(tmp_path: Path) -> None:
    names = [
        b"with space.jpg",
        b"v1.2.final.jpg",
        b".hidden/not seen.jpg",
        b"quo'te\"s.jpg",
        b"new\nline.jpg",
        b"latin\xe9.jpg",
        b"\xff\xfe.jpg",
        "Çağlar — 東京.JPG".encode(),
        b"-rf.jpg",
        b"a#b%20c?.jpg",
        b"x" * 240 + b".jpg",
        b"sub dir\xe9/inner.jpg",
    ]
    root = tmp_path / "in"
    root.mkdir()
    for number, name in enumerate(names):
        path = root / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(seed=number))
    rows, rejected = pack(root, tmp_path / "out")
    assert rejected == {}
    expected = {to_text(name): jpeg(seed=i) for i, name in enumerate(names) if not name.startswith(b".hidden")}
    assert {name: row["image"] for name, row in rows.items()} == expected
    assert len({row["key"] for row in rows.values()}) == len(expected)


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(seed=1), "a.png": png(seed=2), "a.JPEG": jpeg(seed=3), "sub/a.jpg": jpeg(seed=4)}
    rows, rejected = pack(write(tmp_path / "in", files), tmp_path / "out")
    assert sorted(rows) == ["a.JPEG", "sub/a.jpg"], "the first in sorted order"
    assert rejected == dict.fromkeys(("a.jpg", "a.png"), ("duplicate_id", "a.JPEG is packed"))


def test_ids_whose_hashes_begin_alike_both_get_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clashing(id: str, digits: int = 10) -> Key:
        return Key("0123456789-same") if digits == 10 else key_of(id, digits)

    monkeypatch.setattr(plan_module, "key_of", clashing)
    plan = make_plan(folder_recipe(write(tmp_path / "in", {"a.jpg": jpeg(), "b.jpg": jpeg()})), tmp_path / "out")
    keys = {row.id: row.key for row in plan.rows(0)}
    assert keys == {"a": "0123456789-same", "b": key_of("b", 20)}


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", {"s.jpg": jpeg(seed=1), "deep/t.jpg": jpeg(seed=2)})
    root = write(tmp_path / "in", {"real/a.jpg": jpeg(seed=3)})
    (root / "out.jpg").symlink_to(secret / "s.jpg")
    (root / "relative.jpg").symlink_to("../secret/s.jpg")
    (root / "folder").symlink_to(secret)
    (root / "inside.jpg").symlink_to("real/a.jpg")
    (root / "again").symlink_to("real")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "self").symlink_to(".")
    (root / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    rows, rejected = pack(root, tmp_path / "out")
    assert sorted(rows) == ["inside.jpg", "real/a.jpg"]
    assert rows["inside.jpg"]["image"] == jpeg(seed=3)
    reasons = {name: reason for name, (reason, _) in rejected.items()}
    assert reasons.pop("folder", None) in (None, "outside_root")
    assert reasons == {
        "out.jpg": "outside_root",
        "relative.jpg": "outside_root",
        "gone.jpg": "broken_link",
        "loop.jpg": "broken_link",
        "pipe.jpg": "not_a_file",
    }


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", {"a.jpg": jpeg()})
    (tmp_path / "link").symlink_to("real")
    rows, rejected = pack(tmp_path / "link", tmp_path / "out")
    assert (list(rows), rejected) == (["a.jpg"], {})


# ---------------------------------------------------------------- label maps, instances, captions


def test_label_maps(tmp_path: Path) -> None:
    palette = Image.fromarray(decoded(label_png()))
    palette.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0])
    files = {
        "good": label_png(),
        "palette": encoded(palette, "PNG"),
        "ignored": label_png(ids=(0, 1, 9)),
        "small": label_png(24, 16),
        "range": label_png(ids=(0, 1, 5)),
        "deep": encoded(Image.fromarray(decoded(label_png()).astype(np.uint16)), "PNG"),
        "colour": png(),
        "alpha": with_alpha(),
        "bits": encoded(Image.fromarray(decoded(label_png()) > 0), "PNG"),
        "jpeg": jpeg(),
        "cut": label_png()[:-30],
        "zero": b"",
        "big": bomb(),
    }
    root = write(tmp_path / "in", {f"{name}.label.png": data for name, data in files.items()})
    write(root, {f"{name}.jpg": jpeg() for name in files} | {"lonely.jpg": jpeg()})
    recipe = {"classes": CLASSES, "ignore_id": 9, "fields": ["image", "label"]}
    rows, rejected = pack(root, tmp_path / "out", **recipe)
    assert sorted(rows) == ["good.jpg", "ignored.jpg", "palette.jpg"]
    for name in ("good", "palette"):
        assert np.array_equal(decoded(rows[f"{name}.jpg"]["label"]), decoded(label_png()))
    assert Image.open(io.BytesIO(rows["palette.jpg"]["label"])).mode == "L"
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "small.jpg": "label_size",
        "range.jpg": "label_range",
        "deep.jpg": "label_format",
        "colour.jpg": "label_format",
        "alpha.jpg": "label_format",
        "bits.jpg": "label_format",
        "jpeg.jpg": "label_format",
        "cut.jpg": "label_damaged",
        "zero.jpg": "label_format",
        "big.jpg": "label_format",
        "lonely.jpg": "label_missing",
    }
    assert "id 5 in" in rejected["range.jpg"][1] and "0 to 2, 9" in rejected["range.jpg"][1]
    assert "24x16" in rejected["small.jpg"][1] and "48x32" in rejected["small.jpg"][1]
    assert "label.encoding" in rejected["colour.jpg"][1]


def test_a_row_may_lack_what_is_not_promised(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(), "a.label.png": label_png(), "a.txt": "  a stréet \n".encode(), "b.jpg": jpeg()}
    rows, rejected = pack(write(tmp_path / "in", files), tmp_path / "out", classes=CLASSES)
    assert rejected == {}
    assert rows["a.jpg"]["caption"] == "a stréet".encode()
    assert rows["b.jpg"]["caption"] is None and rows["b.jpg"]["label"] is None
    with pytest.raises(UserError, match="no classes"):
        make_plan(folder_recipe(tmp_path / "in"), tmp_path / "other")


def test_label_maps_of_another_size_can_be_resized(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(), "a.label.png": label_png(24, 16), "a.instance.png": label_png(96, 64, (0, 7, 3))}
    recipe = {"classes": CLASSES, "label": {"other_size": "resize"}}
    rows, rejected = pack(write(tmp_path / "in", files), tmp_path / "out", **recipe)
    assert rejected == {}
    assert np.array_equal(decoded(rows["a.jpg"]["label"]), decoded(label_png()))
    assert np.array_equal(decoded(rows["a.jpg"]["instance"]), decoded(label_png(ids=(0, 7, 3))))


def test_colour_coded_labels(tmp_path: Path) -> None:
    ids = decoded(label_png())
    colours = np.array([spec["color"] for spec in CLASSES], dtype=np.uint8)
    black = colours[ids].copy()
    black[:, :5] = 0
    wrong = colours[ids].copy()
    wrong[3, 4] = (1, 2, 3)
    files = {"good": colours[ids], "black": black, "wrong": wrong}
    root = write(tmp_path / "in", {f"gt/{n}.png": encoded(Image.fromarray(data), "PNG") for n, data in files.items()})
    write(root, {f"{name}.jpg": jpeg() for name in files})
    recipe = {"classes": CLASSES, "ignore_id": 255, "label": {"encoding": "colors"}, "source": {"labels": "gt"}}
    rows, rejected = pack(root, tmp_path / "out", **recipe)
    assert np.array_equal(decoded(rows["good.jpg"]["label"]), ids)
    expected = ids.copy()
    expected[:, :5] = 255
    assert np.array_equal(decoded(rows["black.jpg"]["label"]), expected)
    assert rejected == {"wrong.jpg": ("label_color", "(1, 2, 3) is no class's colour")}


def test_captions_and_instances(tmp_path: Path) -> None:
    deep = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48)
    files = {
        "a/x.jpg": jpeg(),
        "words/a/x.txt": "\ufeffTwo cars".encode(),
        "objects/a/x.png": encoded(Image.fromarray(deep), "PNG"),
        "a/y.jpg": jpeg(),
        "words/a/y.txt": b"caf\xe9",
        "a/z.jpg": jpeg(),
        "words/a/z.txt": b"ok",
        "objects/a/z.png": encoded(Image.fromarray(pixels(48, 32)), "PNG"),
        "a/s.jpg": jpeg(),
        "objects/a/s.png": encoded(Image.fromarray(deep[:8]), "PNG"),
    }
    source = {"captions": "words", "instances": "objects", "split_by": "folder"}
    rows, rejected = pack(write(tmp_path / "in", files), tmp_path / "out", source=source)
    assert rows["a/x.jpg"]["caption"] == b"Two cars"
    assert np.array_equal(decoded(rows["a/x.jpg"]["instance"]), deep)
    assert rows["a/x.jpg"]["meta"]["split"] == "a"
    reasons = {name: reason for name, (reason, _) in rejected.items()}
    assert reasons == {"a/y.jpg": "caption_encoding", "a/z.jpg": "instance_format", "a/s.jpg": "instance_size"}


def test_a_caption_that_is_promised(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"a.jpg": jpeg(), "a.txt": b"x", "b.jpg": jpeg()})
    rows, rejected = pack(root, tmp_path / "out", fields=["image", "caption"])
    assert list(rows) == ["a.jpg"]
    assert rejected["b.jpg"][0] == "caption_missing"


# ---------------------------------------------------------------- splits and layouts


def test_a_split_by_fraction_does_not_move_when_pictures_are_added(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {f"{i}.jpg": jpeg(16, 16) for i in range(60)})
    source = {"val_fraction": 0.25}
    first, _ = pack(root, tmp_path / "one", source=source)
    write(root, {f"{i}.jpg": jpeg(16, 16) for i in range(60, 80)})
    second, _ = pack(root, tmp_path / "two", source=source)
    splits = {name: row["meta"]["split"] for name, row in first.items()}
    assert {second[name]["meta"]["split"] == split for name, split in splits.items()} == {True}
    assert 5 <= list(splits.values()).count("val") <= 25


def test_camvid(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for split, count in (("train", 5), ("val", 2)):
        for i in range(count):
            kind = "png" if i % 2 else "jpg"
            files[f"{split}/{split}_{i}.{kind}"] = png(seed=i) if i % 2 else jpeg(seed=i)
            files[f"{split}annot/{split}_{i}.png"] = label_png(ids=(0, 10, 11))
    files["train/alone.jpg"] = jpeg()
    root = write(tmp_path / "in", files)
    source = {"kind": "camvid", "root": str(root)}
    recipe = Recipe.model_validate({"name": "camvid", "source": source, "image": {"resize": "crop", "size": [16, 16]}})
    plan, dataset = packed(recipe, tmp_path / "out")
    assert (plan.files_seen, dataset.splits, dataset.ignore_id) == (8, {"train": 5, "val": 2}, 11)
    assert dataset.image_size == (16, 16)
    assert len(dataset.classes) == len(set(dataset.palette)) == 11
    row = dataset.view(["base.image", "base.label"], "val").read(0)
    assert Image.open(io.BytesIO(row["base.image"])).size == (16, 16)
    assert set(np.unique(decoded(row["base.label"]))) == {0, 10, 11}
    with pytest.raises(UserError, match="trainannot"):
        make_plan(Recipe.model_validate({"name": "x", "source": {**source, "root": str(tmp_path)}}), tmp_path / "no")


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("resize", "size", "width", "height", "expected"),
    [
        ("crop", (64, 64), 480, 360, (64, 64)),
        ("crop", (64, 32), 100, 400, (64, 32)),
        ("crop", (128, 128), 40, 50, (128, 128)),
        ("fit", (64, 64), 480, 360, (64, 48)),
        ("fit", (64, 64), 360, 480, (48, 64)),
        ("fit", (640, 640), 48, 32, (48, 32)),
        ("fit", (64, 64), 4000, 3, (64, 1)),
        ("letterbox", (64, 64), 480, 360, (64, 64)),
        ("letterbox", (640, 64), 48, 32, (640, 64)),
    ],
)
def test_sizes(resize: str, size: tuple[int, int], width: int, height: int, expected: tuple[int, int]) -> None:
    geometry = plan_geometry(ImagePolicy.model_validate({"resize": resize, "size": size}), width, height)
    image = Image.fromarray(pixels(width, height))
    ids = np.zeros((height, width), np.uint8)
    if geometry is None:
        assert (width, height) == expected
        return
    assert resize_image(image, geometry).size == expected
    assert resize_ids(ids, geometry, pad=3).shape == expected[::-1]
    assert resize_instances(ids.astype(np.uint16), ids, geometry).shape == expected[::-1]


def test_a_picture_that_has_the_size_is_left_alone() -> None:
    for resize in ("crop", "fit", "letterbox"):
        assert plan_geometry(ImagePolicy.model_validate({"resize": resize, "size": (48, 32)}), 48, 32) is None


@pytest.mark.parametrize("resize", ["crop", "fit", "letterbox"])
def test_pictures_and_labels_stay_aligned(resize: str) -> None:
    """A bright square is found at the same place in the picture, the label map and the instance map."""
    random = dice()
    for _ in range(20):
        width, height = random.randrange(60, 300), random.randrange(60, 300)
        side = min(width, height) // 3
        x, y = (width - side) // 2 + random.randrange(-9, 9), (height - side) // 2 + random.randrange(-9, 9)
        ids = np.zeros((height, width), np.uint8)
        ids[y : y + side, x : x + side] = 1
        policy = ImagePolicy.model_validate(
            {"resize": resize, "size": (random.randrange(24, 90), random.randrange(24, 90))}
        )
        geometry = plan_geometry(policy, width, height)
        if geometry is None:
            continue
        image = np.asarray(resize_image(Image.fromarray(ids * 255), geometry)) > 127
        label = resize_ids(ids, geometry, pad=0) == 1
        instance = resize_instances(ids.astype(np.uint16) * 500, ids, geometry) == 500
        assert np.array_equal(label, instance)
        for axis in (0, 1):
            seen, labelled = np.flatnonzero(image.any(axis)), np.flatnonzero(label.any(axis))
            assert abs(int(seen[0]) - int(labelled[0])) <= 1 and abs(int(seen[-1]) - int(labelled[-1])) <= 1


def test_letterbox_pads_labels_with_the_ignore_id() -> None:
    policy = ImagePolicy.model_validate({"resize": "letterbox", "size": (64, 64)})
    geometry = plan_geometry(policy, 64, 32)
    assert geometry is not None
    padded = resize_ids(np.ones((32, 64), np.uint8), geometry, pad=11)
    assert (padded[:16] == 11).all() and (padded[48:] == 11).all() and (padded[16:48] == 1).all()


def test_the_vote_is_the_most_frequent_id_of_each_cell() -> None:
    random = dice()
    rng = np.random.default_rng(random.randrange(2**32))
    for _ in range(25):
        high, wide = rng.integers(8, 90, 2).tolist()
        height, width = int(rng.integers(1, high // 2 + 1)), int(rng.integers(1, wide // 2 + 1))
        ids = rng.integers(0, 5, (high, wide)).astype(np.uint8)
        voted = scale_ids(ids, (width, height))
        for r in range(height):
            for c in range(width):
                rows = slice(r * high // height, (r + 1) * high // height)
                cell = ids[rows, c * wide // width : (c + 1) * wide // width]
                assert voted[r, c] == np.bincount(cell.ravel()).argmax()


def test_enlarging_keeps_every_id_in_its_place() -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(scale_ids(ids, (12, 9)), ids.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(scale_ids(ids, (4, 3)), ids)
    wide = np.tile(np.arange(40, dtype=np.uint8), (3, 1))
    assert scale_ids(wide, (10, 6)).shape == (6, 10), "shrunk on one side, enlarged on the other"


def test_instances_agree_with_the_labels_that_won() -> None:
    rng = np.random.default_rng(dice().randrange(2**32))
    geometry = plan_geometry(ImagePolicy.model_validate({"resize": "crop", "size": (16, 16)}), 64, 64)
    assert geometry is not None
    labels = rng.integers(0, 3, (64, 64)).astype(np.uint8)
    instances = (labels.astype(np.uint16) * 1000) + rng.integers(0, 3, (64, 64)).astype(np.uint16)
    assert np.array_equal(resize_instances(instances, labels, geometry) // 1000, resize_ids(labels, geometry, 0))


# ---------------------------------------------------------------- all at once


def test_a_pile_of_everything_adds_up(tmp_path: Path) -> None:
    """Random bytes damage random pictures: whatever happens, every file is accounted for and the dataset verifies."""
    random = dice()
    files = {}
    for number in range(60):
        data = bytearray(random.choice([jpeg(seed=number), png(seed=number), animated("GIF"), oriented(6)]))
        for _ in range(random.randrange(4)):
            data[random.randrange(len(data))] = random.randrange(256)
        if random.random() < 0.3:
            del data[random.randrange(len(data)) :]
        files[f"{number}.{random.choice(['jpg', 'png', 'gif'])}"] = bytes(data)
    rows, rejected = pack(write(tmp_path / "in", files), tmp_path / "out", image={"resize": "crop", "size": [16, 16]})
    assert set(rows) | set(rejected) == set(files)
    assert not set(rows) & set(rejected)
    assert all(decoded(row["image"]).shape[:2] == (16, 16) for row in rows.values())
    assert Dataset.open(tmp_path / "out").rows() == len(rows)
