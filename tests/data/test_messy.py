"""Pictures and names as they arrive in real life: normalised by a stated rule, or rejected with a reason."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_images import (
    CLASSES,
    bomb,
    decoded,
    dice,
    encoded,
    folder_recipe,
    jpeg,
    label_png,
    pack_folder,
    packed,
    pixels,
    planned,
    png,
    with_alpha,
    write_files,
)
from PIL import Image, ImageCms

from semiocity.data import listing
from semiocity.data.columns import Dataset
from semiocity.data.images import Rejected, decode_image
from semiocity.data.keys import Key, key_of, to_text
from semiocity.data.pack import pack_shard
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.errors import UserError

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
    root = write_files(tmp_path / "in", {name: make() for name, (make, _) in BAD.items()} | {"good.jpg": jpeg()})
    rows, rejected = pack_folder(root, tmp_path / "out", image={"max_pixels": 100_000})
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


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK (transform 2), as printing software writes."""
    data = encoded(Image.fromarray(pixels(48, 32)).convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :]


NORMALISED: dict[str, tuple[Callable[[], bytes], str, list[str]]] = {
    "cmyk.jpg": (
        lambda: encoded(Image.fromarray(pixels(48, 32)).convert("CMYK"), "JPEG", quality=95),
        "jpg",
        ["CMYK to RGB"],
    ),
    "ycck.jpg": (ycck, "jpg", ["CMYK to RGB"]),
    "turned.jpg": (lambda: oriented(6), "jpg", ["orientation"]),
    "deep grey.png": (deep_grey, "png", ["16 bits to 8"]),
    "deep rgb.png": (deep_rgb, "png", ["16 bits to 8"]),
    "palette.png": (lambda: encoded(Image.fromarray(pixels(48, 32)).quantize(64), "PNG"), "png", ["P to RGB"]),
    "alpha.png": (with_alpha, "png", ["alpha over white"]),
    "bits.png": (lambda: encoded(Image.fromarray(pixels(48, 32)).convert("1"), "PNG"), "png", ["1 to L"]),
    "animated.gif": (lambda: animated("GIF"), "png", ["first frame"]),
    "moving.webp": (lambda: animated("WEBP"), "png", ["first frame"]),
    "flat.webp": (lambda: encoded(Image.fromarray(pixels(48, 32)), "WEBP", lossless=True), "png", []),
    "old.bmp": (lambda: encoded(Image.fromarray(pixels(48, 32)), "BMP"), "png", []),
    "scan.tif": (lambda: encoded(Image.fromarray(pixels(48, 32)), "TIFF"), "png", []),
    "really a png.jpg": (lambda: png(), "png", []),
}


def test_pictures_that_are_normalised(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {name: make() for name, (make, _, _) in NORMALISED.items()})
    rows, rejected = pack_folder(root, tmp_path / "out")
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
    root = write_files(tmp_path / "in", {f"{n}.jpg": oriented(n) for n in range(1, 9)})
    rows, _ = pack_folder(root, tmp_path / "out", image={"format": "png"})
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
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert rejected == {}
    assert {name: row["image"] for name, row in rows.items()} == files
    assert all(row["meta"]["changes"] == [] for row in rows.values())


def test_the_same_picture_twice_is_two_rows(tmp_path: Path) -> None:
    rows, rejected = pack_folder(write_files(tmp_path / "in", {"a.jpg": jpeg(), "b.jpg": jpeg()}), tmp_path / "out")
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
    rows, rejected = pack_folder(root, tmp_path / "out")
    assert rejected == {}
    expected = {to_text(name): jpeg(seed=i) for i, name in enumerate(names) if not name.startswith(b".hidden")}
    assert {name: row["image"] for name, row in rows.items()} == expected
    assert len({row["key"] for row in rows.values()}) == len(expected)


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(seed=1), "a.png": png(seed=2), "a.JPEG": jpeg(seed=3), "sub/a.jpg": jpeg(seed=4)}
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert sorted(rows) == ["a.JPEG", "sub/a.jpg"], "the first in sorted order"
    assert rejected == dict.fromkeys(("a.jpg", "a.png"), ("duplicate_id", "a.JPEG is packed"))


def test_ids_whose_hashes_begin_alike_both_get_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clashing(id: str, digits: int = 10) -> Key:
        return Key("0123456789-same") if digits == 10 else key_of(id, digits)

    monkeypatch.setattr(listing, "key_of", clashing)
    plan = make_plan(folder_recipe(write_files(tmp_path / "in", {"a.jpg": jpeg(), "b.jpg": jpeg()})), tmp_path / "out")
    keys = {entry.id: row.key for entry, row in zip(planned(plan, 0), plan.rows(0))}
    assert keys == {"a": "0123456789-same", "b": key_of("b", 20)}


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    secret = write_files(tmp_path / "secret", {"s.jpg": jpeg(seed=1), "deep/t.jpg": jpeg(seed=2)})
    root = write_files(tmp_path / "in", {"real/a.jpg": jpeg(seed=3)})
    (root / "out.jpg").symlink_to(secret / "s.jpg")
    (root / "relative.jpg").symlink_to("../secret/s.jpg")
    (root / "folder").symlink_to(secret)
    (root / "inside.jpg").symlink_to("real/a.jpg")
    (root / "again").symlink_to("real")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "self").symlink_to(".")
    (root / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    rows, rejected = pack_folder(root, tmp_path / "out")
    assert sorted(rows) == ["inside.jpg", "real/a.jpg"]
    assert rows["inside.jpg"]["image"] == jpeg(seed=3)
    reasons = {name: reason for name, (reason, _) in rejected.items()}
    assert reasons == {
        "folder": "outside_root",
        "out.jpg": "outside_root",
        "relative.jpg": "outside_root",
        "gone.jpg": "broken_link",
        "loop.jpg": "broken_link",
        "pipe.jpg": "not_a_file",
    }


@pytest.mark.parametrize("allowed", [False, True])
def test_a_link_that_appears_after_planning_is_not_followed_outside(tmp_path: Path, allowed: bool) -> None:
    secret = write_files(tmp_path / "secret", {"a.jpg": jpeg(seed=1), "deep/b.jpg": jpeg(seed=2)})
    root = write_files(tmp_path / "in", {"a.jpg": jpeg(seed=1), "deep/b.jpg": jpeg(seed=2), "c.jpg": jpeg(seed=3)})
    source = {"link_roots": [str(secret)]} if allowed else {}
    plan = make_plan(folder_recipe(root, source=source), tmp_path / "out")
    (root / "a.jpg").unlink()
    (root / "a.jpg").symlink_to(secret / "a.jpg")
    (root / "deep").rename(tmp_path / "away")
    (root / "deep").symlink_to(secret / "deep")
    receipt = pack_shard(plan, 0, plan.path(0))
    assert receipt["rows"] == (3 if allowed else 1)
    reasons = {item["id"]: item["reason"] for item in receipt["rejected"]}
    assert reasons == ({} if allowed else {"a.jpg": "outside_root", "deep/b.jpg": "outside_root"})
    (root / "c.jpg").unlink()
    os.mkfifo(root / "c.jpg")
    again = {item["id"]: item["reason"] for item in pack_shard(plan, 0, plan.path(0))["rejected"]}
    assert again == {**reasons, "c.jpg": "not_a_file"}


def test_links_lead_into_declared_folders_only(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": jpeg(seed=1)})
    store = write_files(tmp_path / "store", {"part/b.jpg": jpeg(seed=2), "c.jpg": jpeg(seed=3)})
    elsewhere = write_files(tmp_path / "store2", {"d.jpg": jpeg(seed=4)})
    (root / "linked").symlink_to(store)
    (root / "c.jpg").symlink_to(store / "c.jpg")
    (root / "no").symlink_to(elsewhere)
    (store / "up").symlink_to(store)
    rows, rejected = pack_folder(root, tmp_path / "out", source={"link_roots": [str(store)]})
    assert sorted(rows) == ["a.jpg", "c.jpg", "linked/c.jpg", "linked/part/b.jpg"]
    assert {name: reason for name, (reason, _) in rejected.items()} == {"no": "outside_root"}
    with pytest.raises(UserError, match="link_roots"):
        pack_folder(root, tmp_path / "out2", source={"link_roots": [str(tmp_path / "absent")]})


def test_parallel_folders_and_splits_must_not_be_links(tmp_path: Path) -> None:
    write_files(tmp_path / "secret", {"a.png": label_png()})
    root = write_files(tmp_path / "in", {"a.jpg": jpeg(), "train/a.jpg": jpeg()})
    (root / "gt").symlink_to(tmp_path / "secret")
    (root / "trainannot").symlink_to(tmp_path / "secret")
    camvid = Recipe.model_validate({"name": "x", "source": {"kind": "camvid", "root": str(root)}})
    for recipe in (folder_recipe(root, source={"labels": "gt"}, classes=CLASSES), camvid):
        with pytest.raises(UserError, match="symbolic link"):
            make_plan(recipe, tmp_path / "out")


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    write_files(tmp_path / "real", {"a.jpg": jpeg()})
    (tmp_path / "link").symlink_to("real")
    rows, rejected = pack_folder(tmp_path / "link", tmp_path / "out")
    assert (list(rows), rejected) == (["a.jpg"], {})


# ---------------------------------------------------------------- splits and layouts


def test_a_split_by_fraction_does_not_move_when_pictures_are_added(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {f"{i}.jpg": jpeg(16, 16) for i in range(60)})
    source = {"val_fraction": 0.25}
    first, _ = pack_folder(root, tmp_path / "one", source=source)
    write_files(root, {f"{i}.jpg": jpeg(16, 16) for i in range(60, 80)})
    second, _ = pack_folder(root, tmp_path / "two", source=source)
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
    root = write_files(tmp_path / "in", files)
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
    rows, rejected = pack_folder(
        write_files(tmp_path / "in", files), tmp_path / "out", image={"resize": "crop", "size": [16, 16]}
    )
    assert set(rows) | set(rejected) == set(files)
    assert not set(rows) & set(rejected)
    assert all(decoded(row["image"]).shape[:2] == (16, 16) for row in rows.values())
    assert Dataset.open(tmp_path / "out").rows() == len(rows)
