"""Label maps, instance maps and captions: packed by a stated rule, or rejected with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from make_images import (
    CLASSES,
    bomb,
    decoded,
    encoded,
    folder_recipe,
    jpeg,
    label_png,
    pack_folder,
    pixels,
    png,
    with_alpha,
    write_files,
)
from PIL import Image

from semiocity.data.plan import make_plan
from semiocity.data.recipe import load_recipe
from semiocity.errors import UserError
from semiocity.train.tasks.sdm import one_hot


def test_ids_of_the_files_become_places_in_the_list_of_classes(tmp_path: Path) -> None:
    classes = [{**CLASSES[0], "ids": [7, 8]}, {**CLASSES[1], "ids": [0]}]
    files = {"a": label_png(ids=(0, 7, 8)), "b": label_png(ids=(0, 7, 3)), "c": label_png(ids=(0, 7, 1))}
    root = write_files(tmp_path / "in", {f"{name}.label.png": data for name, data in files.items()})
    write_files(root, {f"{name}.jpg": jpeg() for name in files})
    rows, rejected = pack_folder(
        root, tmp_path / "out", classes=classes, ignore_id=9, label={"ignore_ids": [3]}, fields=["image", "label"]
    )
    for name, meaning in (("a", {0: 1, 7: 0, 8: 0}), ("b", {0: 1, 7: 0, 3: 9})):
        expected = np.vectorize(meaning.get)(decoded(files[name]))
        assert np.array_equal(decoded(rows[f"{name}.jpg"]["label"]), expected)
    assert rejected["c.jpg"] == ("label_range", rejected["c.jpg"][1]) and "id 1 " in rejected["c.jpg"][1]


@pytest.mark.parametrize(
    ("first", "second", "ignored"), [([0, 1], [1], []), ([0], [1], [1])], ids=["two classes", "class and ignored"]
)
def test_an_id_with_two_meanings_is_refused(
    tmp_path: Path, first: list[int], second: list[int], ignored: list[int]
) -> None:
    classes = [{**CLASSES[0], "ids": first}, {**CLASSES[1], "ids": second}]
    with pytest.raises(ValueError, match="id 1 of the label maps has two meanings"):
        folder_recipe(tmp_path, classes=classes, ignore_id=9, label={"ignore_ids": ignored})


def test_two_classes_of_one_colour_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        f'[source]\nkind = "folder"\nroot = "{tmp_path}"\n'
        '[[classes]]\nname = "car"\ncolor = [0, 0, 142]\n[[classes]]\nname = "plate"\ncolor = [0, 0, 142]\n'
    )
    with pytest.raises(UserError, match=r"car and plate have the same color \[0, 0, 142\]"):
        load_recipe(file)


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
    root = write_files(tmp_path / "in", {f"{name}.label.png": data for name, data in files.items()})
    write_files(root, {f"{name}.jpg": jpeg() for name in files} | {"lonely.jpg": jpeg()})
    recipe = {"classes": CLASSES, "ignore_id": 9, "fields": ["image", "label"]}
    rows, rejected = pack_folder(root, tmp_path / "out", **recipe)
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
        "big.jpg": "label_too_large",
        "lonely.jpg": "label_missing",
    }
    assert "id 5 in" in rejected["range.jpg"][1] and "0 to 2, 9" in rejected["range.jpg"][1]
    assert "24x16" in rejected["small.jpg"][1] and "48x32" in rejected["small.jpg"][1]
    assert "label.encoding" in rejected["colour.jpg"][1]


def test_a_row_may_lack_what_is_not_promised(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(), "a.label.png": label_png(), "a.txt": "  a stréet \n".encode(), "b.jpg": jpeg()}
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", classes=CLASSES)
    assert rejected == {}
    assert rows["a.jpg"]["caption"] == "a stréet".encode()
    assert rows["b.jpg"]["caption"] is None and rows["b.jpg"]["label"] is None
    with pytest.raises(UserError, match="no classes"):
        make_plan(folder_recipe(tmp_path / "in"), tmp_path / "other")


def test_label_maps_of_another_size_can_be_resized(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(), "a.label.png": label_png(24, 16), "a.instance.png": label_png(96, 64, (0, 7, 3))}
    recipe = {"classes": CLASSES, "label": {"other_size": "resize"}}
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", **recipe)
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
    root = write_files(
        tmp_path / "in", {f"gt/{n}.png": encoded(Image.fromarray(data), "PNG") for n, data in files.items()}
    )
    write_files(root, {f"{name}.jpg": jpeg() for name in files})
    recipe = {"classes": CLASSES, "ignore_id": 255, "label": {"encoding": "colors"}, "source": {"labels": "gt"}}
    rows, rejected = pack_folder(root, tmp_path / "out", **recipe)
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
    rows, rejected = pack_folder(write_files(tmp_path / "in", files), tmp_path / "out", source=source)
    assert rows["a/x.jpg"]["caption"] == b"Two cars"
    assert np.array_equal(decoded(rows["a/x.jpg"]["instance"]), deep)
    assert rows["a/x.jpg"]["meta"]["split"] == "a"
    reasons = {name: reason for name, (reason, _) in rejected.items()}
    assert reasons == {"a/y.jpg": "caption_encoding", "a/z.jpg": "instance_format", "a/s.jpg": "instance_size"}


def test_a_caption_that_is_promised(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": jpeg(), "a.txt": b"x", "b.jpg": jpeg()})
    rows, rejected = pack_folder(root, tmp_path / "out", fields=["image", "caption"])
    assert list(rows) == ["a.jpg"]
    assert rejected["b.jpg"][0] == "caption_missing"


def test_edges_on_request(tmp_path: Path) -> None:
    instance = np.zeros((32, 48), np.uint16)
    instance[8:20, 10:30] = 700
    instance[8:20, 30:40] = 701
    files = {
        "a.jpg": jpeg(),
        "a.label.png": label_png(),
        "a.instance.png": encoded(Image.fromarray(instance), "PNG"),
        "b.jpg": jpeg(),
        "b.label.png": label_png(ids=(0, 1)),
        "c.jpg": jpeg(),
    }
    root = write_files(tmp_path / "in", files)
    rows, rejected = pack_folder(root, tmp_path / "out", classes=CLASSES, edges=True)
    assert rejected == {}
    expected = np.zeros((32, 48), np.uint8)
    expected[8:20, [9, 10, 29, 30, 39, 40]] = 255
    expected[[7, 8, 19, 20], 10:40] = 255
    assert np.array_equal(decoded(rows["a.jpg"]["edge"]), expected), "both sides of every border of an instance"
    stripes = np.zeros((32, 48), np.uint8)
    stripes[:, 23:25] = 255
    assert np.array_equal(decoded(rows["b.jpg"]["edge"]), stripes), "of a label, where there is no instance map"
    assert rows["c.jpg"]["edge"] is None
    image = {"resize": "crop", "size": [24, 16]}
    small, _ = pack_folder(root, tmp_path / "small", classes=CLASSES, edges=True, image=image)
    layout = one_hot(
        torch.from_numpy(decoded(small["a.jpg"]["label"]).astype(np.int64))[None],
        3,
        torch.from_numpy(decoded(small["a.jpg"]["instance"]).astype(np.int64))[None],
    )
    trained_on = (layout[0, 3].numpy() * 255).astype(np.uint8)
    assert np.array_equal(decoded(small["a.jpg"]["edge"]), trained_on), "as training computes them"
