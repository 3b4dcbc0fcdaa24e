"""Blurring while packing: what detectors find is gone for good, and the dataset says so."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_images import CLASSES, decoded, folder_recipe, jpeg, label_png, pack_folder, packed, write_files
from PIL import Image

from semiocity.data.blurring import blur_boxes, make_blurrer
from semiocity.data.pack import pack_shard
from semiocity.data.plan import Plan, make_plan
from semiocity.errors import Stopped, UserError
from semiocity.launch.jobs import pack as pack_job


def checks(width: int = 96, height: int = 64) -> np.ndarray:
    """A picture of single pixels, black and white at random: all of it is detail."""
    values = np.random.default_rng(0).integers(0, 2, (height, width, 1), dtype=np.uint8) * 255
    return np.repeat(values, 3, axis=2)


def photo(**options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(checks()).save(sink, "JPEG", quality=95, subsampling=0, **options)
    return sink.getvalue()


def boxes_file(path: Path, boxes: dict[str, list[list[float]]]) -> dict[str, Any]:
    path.write_text(json.dumps(boxes))
    return {"detector": {"kind": "boxes", "path": str(path)}, "margin": 0.0}


def test_what_is_in_a_box_is_gone_and_the_rest_is_untouched() -> None:
    image = Image.fromarray(checks())
    made, count = blur_boxes(image, [(10, 8, 40, 28), (90, 60, 200, 90), (300, 0, 310, 9), (5, 5, 5, 9)], 0.1, 5)
    assert count == 2, "one lies partly in the picture, one outside, one is empty"
    before, after = checks().astype(int), np.asarray(made).astype(int)
    outside = np.ones(before.shape[:2], bool)
    outside[6:30, 7:43] = outside[57:, 79:] = False
    assert (before == after)[outside].all()
    inside = after[6:30, 7:43, 0]
    assert np.abs(np.diff(inside, axis=1)).max() < 40 and np.abs(np.diff(inside, axis=0)).max() < 40
    assert inside.std() < 0.25 * before[6:30, 7:43].std()


def test_only_averages_are_left_of_a_box() -> None:
    """Two contents with the same averages in each cell give the same bytes: nothing else can be recovered."""
    one = checks(50, 50)
    other = one.copy()
    for top in range(0, 50, 10):
        for left in range(0, 50, 10):
            cell = other[top : top + 10, left : left + 10].reshape(-1, 3)
            other[top : top + 10, left : left + 10] = cell[::-1].reshape(10, 10, 3)
    assert (one != other).any()
    first, second = (blur_boxes(Image.fromarray(a), [(0, 0, 50, 50)], 0, 5)[0] for a in (one, other))
    assert first.tobytes() == second.tobytes()


def test_boxes_made_elsewhere(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    files = {
        "street/a.jpg": photo(),
        "b.jpg": photo(),
        "c.jpg": photo(),
        "turned.jpg": photo(exif=exif),
        "street/a.label.png": label_png(96, 64, (0, 1, 2)),
    }
    root = write_files(tmp_path / "in", files)
    blur = boxes_file(
        tmp_path / "boxes.json",
        {"street/a.jpg": [[8, 8, 40, 32], [50, 8, 70, 32]], "b": [], "turned": [[0, 0, 20, 16]]},
    )
    rows, rejected = pack_folder(root, tmp_path / "out", blur=blur, classes=CLASSES)
    assert rejected == {"c.jpg": ("blur_unlisted", "c.jpg")}
    assert {name: row["scalars"]["blurred"] for name, row in rows.items()} == {
        "street/a.jpg": 2,
        "b.jpg": 0,
        "turned.jpg": 1,
    }
    assert rows["b.jpg"]["image"] == photo(), "nothing found, nothing encoded again"
    a = rows["street/a.jpg"]
    assert a["meta"]["changes"] == ["blurred 2"]
    assert Image.open(io.BytesIO(a["image"])).format == "JPEG"
    assert decoded(a["image"])[12:28, 12:36].std() < 0.3 * checks().std()
    assert np.abs(decoded(a["image"]).astype(int) - checks())[40:].mean() < 8
    assert a["label"] is not None
    turned = decoded(rows["turned.jpg"]["image"])
    assert rows["turned.jpg"]["meta"]["changes"] == ["orientation", "blurred 1"]
    assert turned[2:14, 2:18].std() < 0.3 * checks().std(), "boxes are those of the upright picture"


def test_csv_of_boxes(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": photo(), "b.jpg": photo(), "c.jpg": photo()})
    path = tmp_path / "boxes.csv"
    path.write_text("id,left,top,right,bottom\na,8,8,40,32\na,50,8,70,32\nb,,,,\n")
    blur = {"detector": {"kind": "boxes", "path": str(path), "unlisted": "keep"}}
    rows, _ = pack_folder(root, tmp_path / "out", blur=blur)
    assert {name: row["scalars"]["blurred"] for name, row in rows.items()} == {"a.jpg": 2, "b.jpg": 0, "c.jpg": 0}
    for text, message in (
        ("picture,left,top,right,bottom\n", "first line with these names"),
        ("id,left,top,right,bottom\na,9,9,8,12\n", "line 2: .* is no box"),
        ("id,left,top,right,bottom\na,9,9,x,12\n", "line 2: could not convert"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            pack_folder(root, tmp_path / "other", blur=blur)


def test_another_detector_is_another_revision(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": photo()})
    blur = boxes_file(tmp_path / "boxes.json", {"a": []})

    def revision(**changes: Any) -> str:
        return make_plan(folder_recipe(root, **changes), tmp_path / "out").revision

    plain, first = revision(), revision(blur=blur)
    wider = revision(blur={**blur, "margin": 0.5})
    (tmp_path / "boxes.json").rename(tmp_path / "moved.json")
    moved = revision(blur={**blur, "detector": {"kind": "boxes", "path": str(tmp_path / "moved.json")}})
    assert moved == first, "where the boxes lie is no property of the dataset"
    blur = boxes_file(tmp_path / "boxes.json", {"a": [[0, 0, 9, 9]]})
    assert len({plain, first, wider, revision(blur=blur)}) == 4


@pytest.mark.parametrize("stops", [1, 3, 6])
def test_a_shard_that_is_stopped_inside_goes_on_with_the_next_picture(tmp_path: Path, stops: int) -> None:
    """Also when a row is rejected; the same bytes as without a stop."""
    files = {f"{name}.jpg": photo() for name in "abcdef"} | {"g.jpg": b"no picture"}
    root = write_files(tmp_path / "in", files)
    blur = boxes_file(tmp_path / "boxes.json", {name: [[8, 8, 40, 32]] for name in "abcdefg"})
    plan = make_plan(folder_recipe(root, blur=blur), tmp_path / "out")
    path = plan.path(0)
    whole = pack_shard(plan, 0, path)
    calm = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    shutil.rmtree(path.parent)
    found: list[str] = []
    blurrer = make_blurrer(plan.recipe.blur, plan.detector)
    assert blurrer is not None
    find = blurrer.find

    def counted(entry: Any, image: Any) -> Any:
        found.append(entry.name)
        return find(entry, image)

    blurrer.find = counted
    answers = iter([False] * (stops - 1) + [True])
    with pytest.raises(Stopped):
        pack_shard(plan, 0, path, lambda: blurrer, stop=lambda: next(answers, False))
    assert [file.name for file in path.parent.iterdir()] == [path.journal.name]
    assert pack_shard(plan, 0, path, lambda: blurrer) == whole
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == calm
    assert len(found) == len(set(found)) == 6, "no picture was looked at twice"


def test_a_detector_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": photo()})
    blur = boxes_file(tmp_path / "boxes.json", {"a": []})
    plan = make_plan(folder_recipe(root, blur=blur), tmp_path / "out")
    boxes_file(tmp_path / "boxes.json", {"a": [[0, 0, 9, 9]]})
    with pytest.raises(UserError, match="has changed since the plan was made"):
        pack_shard(plan, 0, plan.path(0))
    (tmp_path / "boxes.json").unlink()
    with pytest.raises(UserError, match=r"blur\.detector\.path: .*No such file"):
        make_plan(folder_recipe(root, blur=blur), tmp_path / "out")


MODULE = """
class Finder:
    def __init__(self, size):
        self.size = size

    def __call__(self, picture):
        assert picture.dtype == "uint8" and picture.shape == (64, 96, 3)
        return [[0, 0, self.size, self.size]]
"""


def test_a_function_of_the_users_own(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": photo()})
    write_files(tmp_path / "mine", {"plates_for_a_test.py": MODULE.encode()})
    detector = {
        "kind": "import",
        "function": "plates_for_a_test:Finder",
        "path": str(tmp_path / "mine"),
        "args": {"size": 30},
    }
    recipe = folder_recipe(root, blur={"detector": detector})
    plan, dataset = packed(recipe, tmp_path / "out")
    assert dataset.view(["base.blurred"]).read(0) == {"base.blurred": 1}
    assert Plan.open(tmp_path / "out", plan.revision).recipe == recipe, "tasks find the module where the plan says"
    write_files(tmp_path / "mine", {"plates_for_a_test.py": (MODULE + "\n").encode()})
    assert make_plan(recipe, tmp_path / "out", anew=True).revision != plan.revision
    gone = folder_recipe(root, blur={"detector": {**detector, "function": "plates_for_a_test:Other"}})
    with pytest.raises(UserError, match="Other"):
        packed(gone, tmp_path / "out2")
    with pytest.raises(ValueError, match="module:function is expected"):
        folder_recipe(root, blur={"detector": {**detector, "function": "no colon"}})


def test_a_detector_on_a_gpu_needs_a_job_with_one(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.jpg": photo()})
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"""
        source = {{kind = "folder", root = "{tmp_path / "in"}"}}
        blur.detector = {{kind = "transformers", path = "{tmp_path}", device = "cuda"}}
        """
    )
    with pytest.raises(UserError, match=r'device is "cuda" but .*pack\.toml asks for no GPU'):
        pack_job(recipe, [], tmp_path / "pack.toml", data=tmp_path / "data")


# ---------------------------------------------------------------- models of transformers


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, and one thread: on busy cores small models spend their time waiting for the others."""
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_yolos(folder: Path) -> Path:
    """A YOLOS of two layers with random weights that finds faces and plates."""
    from tiny_models import randomise
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[64, 96],
        patch_size=16,
        num_detection_tokens=12,
        id2label={0: "face", 1: "license plate"},
        label2id={"face": 0, "license plate": 1},
    )
    model: Any = YolosForObjectDetection(config)
    randomise(model, seed=1)
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def save_owlvit(folder: Path) -> Path:
    """An OWL-ViT with random weights, asked by text."""
    from tiny_models import _opt_tokenizer, randomise
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

    tokenizer = _opt_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OwlViTConfig(
        text_config={**size, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**size, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    model: Any = OwlViTForObjectDetection(config)
    randomise(model, seed=1)
    model.save_pretrained(folder)
    square = {"height": 64, "width": 64}
    OwlViTProcessor(OwlViTImageProcessor(size=square), tokenizer).save_pretrained(folder)
    return folder


def found_by(folder: Path, threshold: float) -> list[str]:
    """The labels of what the library itself finds."""
    import torch
    from transformers import AutoImageProcessor, YolosForObjectDetection

    loader: Any = YolosForObjectDetection
    model, processor = loader.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    image = Image.open(io.BytesIO(photo()))
    with torch.inference_mode():
        output = model(**processor(images=image, return_tensors="pt"))
    found = processor.post_process_object_detection(output, threshold=threshold, target_sizes=[(64, 96)])[0]
    return [model.config.id2label[int(label)] for label in found["labels"]]


def test_a_detector_of_transformers(tmp_path: Path, offline: None) -> None:
    folder = save_yolos(tmp_path / "model")
    root = write_files(tmp_path / "in", {"a.jpg": photo()})
    detector = {"kind": "transformers", "path": str(folder), "threshold": 0.2}
    counts: list[int] = []
    for labels in ((), ("face",)):
        recipe = folder_recipe(root, blur={"detector": {**detector, "labels": labels}, "margin": 0.0})
        _, dataset = packed(recipe, tmp_path / f"out{len(counts)}")
        counts.append(dataset.view(["base.blurred"]).read(0)["base.blurred"])
    found = found_by(folder, 0.2)
    assert counts == [len(found), found.count("face")]
    assert counts[0] > 0
    wrong = folder_recipe(root, blur={"detector": {**detector, "labels": ["plate"]}})
    with pytest.raises(UserError, match="finds no 'plate'; it finds face, license plate"):
        packed(wrong, tmp_path / "wrong")

    before = make_plan(recipe, tmp_path / "plan").revision
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert make_plan(recipe, tmp_path / "plan").revision != before, "other weights, another revision"
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no config\.json with \*\.safetensors"):
        make_plan(recipe, tmp_path / "plan")


def test_a_detector_that_is_asked_by_text(tmp_path: Path, offline: None) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": photo()})
    detector = {
        "kind": "transformers",
        "path": str(save_owlvit(tmp_path / "model")),
        "task": "zero-shot-object-detection",
        "labels": ["a red car", "people"],
        "threshold": 0.001,
    }
    _, dataset = packed(folder_recipe(root, blur={"detector": detector}), tmp_path / "out")
    assert dataset.view(["base.blurred"]).read(0)["base.blurred"] > 0
    with pytest.raises(ValueError, match="needs labels to search for"):
        folder_recipe(root, blur={"detector": {**detector, "labels": []}})


def test_a_folder_that_brings_its_own_code_is_not_run(tmp_path: Path, offline: None) -> None:
    folder = save_yolos(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoModelForObjectDetection": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto}))
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    root = write_files(tmp_path / "in", {"a.jpg": jpeg()})
    with pytest.raises(UserError, match="cannot be loaded"):
        packed(folder_recipe(root, blur={"detector": {"kind": "transformers", "path": str(folder)}}), tmp_path / "out")
    assert not os.path.exists(marker)  # noqa: PTH110
