"""Pictures under the rarer extensions are rows, or are rejected and counted: none vanishes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from make_images import (
    decoded,
    encoded,
    folder_recipe,
    jpeg,
    label_png,
    pack_folder,
    pack_rows,
    packed,
    pixels,
    write_files,
)
from PIL import Image, features

from semiocity.data import images
from semiocity.data.images import decode_image
from semiocity.data.recipe import Recipe
from semiocity.data.sources.files import UNREAD
from semiocity.errors import UserError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def avif(**options: object) -> bytes:
    return encoded(Image.fromarray(pixels(48, 32)), "AVIF", **options)


def test_every_picture_in_a_folder_is_counted(tmp_path: Path) -> None:
    files = {f"{extension}.{extension}": jpeg(seed=i) for i, extension in enumerate(("jpe", "jfif", "JPG"))}
    files |= {"a.avif": avif(quality=95), "holds a jpeg.heic": jpeg(seed=7)}
    files |= {f"other.{i}.{extension}": HEIC for i, extension in enumerate(sorted(UNREAD))}
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert set(rows) == {"jpe.jpe", "jfif.jfif", "JPG.JPG", "a.avif", "holds a jpeg.heic"}
    assert rows["jfif.jfif"]["image"] == jpeg(seed=1), "byte for byte"
    assert np.abs(decoded(rows["a.avif"]["image"]).astype(int) - pixels(48, 32)).mean() < 12
    assert {reason for reason, _ in rejected.values()} == {"image_unknown"} and len(rejected) == len(UNREAD)
    assert len(rows) + len(rejected) == len(files)


def test_of_one_name_the_picture_that_can_be_read_is_the_row(tmp_path: Path) -> None:
    """As telephones export them: a.heic comes before a.jpg in the alphabet."""
    files = {"a.heic": HEIC, "a.jpg": jpeg(seed=1), "b.heic": HEIC, "b.png": HEIC}
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out")
    assert set(rows) == {"a.jpg"}
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "a.heic": "duplicate_id",
        "b.heic": "duplicate_id",
        "b.png": "image_unknown",
    }


def test_what_was_packed_before_these_were_seen_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come as rows that were added: no shard is made anew."""
    root = write_files(tmp_path / "in", {"a.jpg": jpeg(seed=1), "b.jpg": jpeg(seed=2)})
    before, _ = packed(folder_recipe(root), tmp_path / "out")
    write_files(root, {"c.jfif": jpeg(seed=3), "a.avif": avif()})
    after, dataset = packed(folder_recipe(root), tmp_path / "out")
    assert (after.revision, dataset.rows(), after.rejected) == (before.revision, 3, {"duplicate_id": 1})


def test_an_animation_and_a_bomb(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(48, 32, seed)) for seed in range(3)]
    sink = io.BytesIO()
    frames[0].save(sink, "AVIF", save_all=True, append_images=frames[1:])
    picture = decode_image(sink.getvalue(), 10_000)
    assert (picture.pixels.size, picture.changes) == ((48, 32), ["first frame"])
    with pytest.raises(images.Rejected, match="image_too_large"):
        decode_image(avif(), 48 * 32 - 1)
    with pytest.raises(images.Rejected, match="image_damaged"):
        decode_image(avif()[:-100], 10_000)


def test_a_pillow_without_avif_does_not_reject_good_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    data, check = avif(), features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    with pytest.raises(UserError, match="AVIF"):
        decode_image(data, 10_000)


def tar_of(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def test_every_sample_of_a_tar_is_counted(tmp_path: Path) -> None:
    files = {
        "0.jpg": jpeg(),
        "1.jfif": jpeg(seed=1),
        "1.txt": b"a street",
        "2.avif": avif(),
        "3.heic": HEIC,
        "3.txt": b"a street that cannot be read",
        "v4.0.heic": HEIC,
        "v4.0.txt": b"the same under a name with a dot",
        "5.txt": b"the picture could not be had",
        "6.label.png": label_png(),
    }
    root = write_files(tmp_path / "in", {"a.tar": tar_of(files)})
    classes = [{"name": name, "color": [i, i, i]} for i, name in enumerate("abc")]
    recipe = Recipe.model_validate(
        {"name": "x", "classes": classes, "source": {"kind": "webdataset", "root": str(root)}}
    )
    rows, rejected = pack_rows(recipe, tmp_path / "out")
    assert set(rows) == {"a/0", "a/1", "a/2"} and rows["a/1"]["caption"] == b"a street"
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "a.tar/3.heic": "image_unknown",
        "a.tar/v4.0.heic": "image_unknown",
        "a.tar/5": "image_missing",
        "a.tar/6": "image_missing",
    }
