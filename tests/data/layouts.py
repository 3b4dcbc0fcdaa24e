"""Small datasets in the layouts in which they are published."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from make_images import encoded, jpeg, label_png, packed, png, write_files
from PIL import Image

from semiocity.data.recipe import load_recipe
from semiocity.data.sources.reasons import REASONS
from semiocity.data.verify import verify

SHARDS = Path(__file__).parents[2] / "shards"

Rows = dict[str, dict[str, Any]]


def pack_recipe(name: str, root: Path, out: Path, *sets: str) -> tuple[Rows, dict[str, tuple[str, str]], Any]:
    """Pack `root` by the recipe that comes along. Rows by file (fields, meta with the scalars), rejections, dataset."""
    recipe = load_recipe(SHARDS / f"{name}.toml", [f"source.root={root}", "image={}", *sets])
    plan, dataset = packed(recipe, out)
    view = dataset.view([f"base.{field}" for field in dataset.column("base").fields])
    rows: Rows = {}
    for number in range(len(view)):
        row = {field.removeprefix("base."): data for field, data in view.read(number).items()}
        meta = json.loads(row.pop("meta"))
        rows[meta["file"]] = {**row, "meta": meta}
    lines = (plan.folder / "rejected.jsonl").read_text().splitlines()
    rejected = {item["id"]: (item["reason"], item["detail"]) for item in map(json.loads, lines)}
    assert len(rows) + len(rejected) == plan.files_seen, "every picture is packed or rejected"
    assert {reason for reason, _ in rejected.values()} <= set(REASONS)
    assert verify(out) == []
    return rows, rejected, dataset


def id_png(ids: np.ndarray) -> bytes:
    """A map of ids as grey PNG, 8 or 16 bits."""
    return encoded(Image.fromarray(ids), "PNG")


def palette_png(ids: np.ndarray) -> bytes:
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([value for i in range(13) for value in (i * 9, 255 - i * 9, 0)])
    return encoded(image, "PNG")


def boxes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(row["boxes"])


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def cityscapes(root: Path) -> Path:
    """Two cities in train, one in val, test and train_extra; instances of cars 26000, 26001 and a person's 24000."""
    instance = np.full((32, 48), 7, np.uint16)
    instance[:, 16:24], instance[:, 24:32], instance[:, 32:] = 26000, 26001, 24000
    label = np.where(instance < 1000, instance, instance // 1000).astype(np.uint8)
    files = {}
    for split, city, kind in (
        ("train", "aachen", "gtFine"),
        ("train", "zurich", "gtFine"),
        ("val", "munster", "gtFine"),
        ("test", "berlin", "gtFine"),
        ("train_extra", "bayreuth", "gtCoarse"),
        ("train", "aachen", "gtCoarse"),
    ):
        name = f"{split}/{city}/{city}_000001_000019"
        files[f"leftImg8bit/{name}_leftImg8bit.png"] = png(seed=len(name))
        there = label * 0 if split == "test" else np.minimum(label, 7) if kind == "gtCoarse" else label
        files[f"{kind}/{name}_{kind}_labelIds.png"] = id_png(there)
        files[f"{kind}/{name}_{kind}_instanceIds.png"] = id_png(
            there.astype(np.uint16) if kind == "gtCoarse" else instance
        )
        files[f"{kind}/{name}_{kind}_color.png"] = png()
        files[f"{kind}/{name}_{kind}_polygons.json"] = b"{}"
    return write_files(root, files)


def bdd100k(root: Path) -> Path:
    def frame(name: str, weather: str, labels: list[dict[str, Any]] | None) -> dict[str, Any]:
        attributes = {"weather": weather, "scene": "city street", "timeofday": "daytime"}
        made = {"name": name, "attributes": attributes, "timestamp": 10000}
        return made if labels is None else {**made, "labels": labels}

    car = {
        "id": "1",
        "attributes": {"occluded": False, "truncated": True, "trafficLightColor": "NA"},
        "category": "car",
        "box2d": {"x1": 8.5, "y1": 4, "x2": 40.5, "y2": 20},
    }
    train = [frame("a.jpg", "rainy", [car]), frame("empty.jpg", "clear", None), frame("elsewhere.jpg", "foggy", [car])]
    files = {
        "images/100k/train/a.jpg": jpeg(seed=1),
        "images/100k/train/empty.jpg": jpeg(seed=2),
        "images/100k/train/unknown.jpg": jpeg(seed=3),
        "images/100k/val/b.jpg": jpeg(seed=4),
        "images/10k/train/b.jpg": jpeg(seed=4),
        "images/10k/train/c.jpg": jpeg(seed=5),
        "images/10k/train/no map.jpg": jpeg(seed=6),
        "images/10k/val/d.jpg": jpeg(seed=7),
        "images/10k/test/t.jpg": jpeg(seed=8),
        "labels/sem_seg/masks/train/b.png": label_png(ids=(0, 18, 255)),
        "labels/sem_seg/masks/train/c.png": label_png(ids=(0, 2)),
        "labels/sem_seg/masks/val/d.png": label_png(ids=(10, 2)),
        "labels/sem_seg/colormaps/train/b.png": png(),
        "labels/det_20/det_train.json": json.dumps(train, indent=4).encode(),
        "labels/det_20/det_val.json": json.dumps([frame("b.jpg", "snowy", [car, {**car, "box2d": None}])]).encode(),
    }
    return write_files(root, files)


def facade_xml(*objects: tuple[str, float, float, float, float]) -> bytes:
    """As the database writes it: no outermost element; x goes down, y to the right."""
    text = ""
    for name, left, top, right, bottom in objects:
        text += f"<object>\n\t<points>\n\t\t<x>{top}</x>\n\t\t<x>{bottom}</x>\n\t\t<y>{left}</y>\n\t\t<y>{right}</y>\n"
        text += f"\t</points>\n\t<label>3</label>\n\t<labelname>\n{name}\n</labelname>\n\t<flag>0</flag>\n</object>\n"
    return text.encode()


def cmp_facade(root: Path) -> Path:
    ids = np.repeat(np.arange(1, 13, dtype=np.uint8), 4)[None].repeat(32, 0)
    files: dict[str, bytes] = {}
    # b0004 is in the published val split, x0009 decides nothing.
    for name in ("base/cmp_b0001", "base/cmp_b0004", "extended/cmp_x0009"):
        files[f"{name}.jpg"] = jpeg(seed=len(files))
        files[f"{name}.png"] = palette_png(ids)
        files[f"{name}.xml"] = facade_xml(("window", 0.25, 0.5, 0.5, 0.75), ("facade", 0, 0, 1, 1))
    return write_files(root, files)


def ade20k(root: Path) -> Path:
    files = {
        "images/training/ADE_train_00000001.jpg": jpeg(seed=1),
        "annotations/training/ADE_train_00000001.png": label_png(ids=(0, 1, 150)),
        "images/training/ADE_train_00000002.jpg": jpeg(seed=2),
        "images/validation/ADE_val_00000001.jpg": jpeg(seed=3),
        "annotations/validation/ADE_val_00000001.png": label_png(ids=(7, 2)),
        "sceneCategories.txt": b"ADE_train_00000001 airport_terminal\nADE_val_00000001 street\n",
        "objectInfo150.txt": b"Idx\tRatio\tTrain\tVal\tName\n",
    }
    return write_files(root, files)


def coco_stuff(root: Path) -> Path:
    url = "http://creativecommons.org/licenses/by/2.0/"
    said = {
        "info": {"year": 2017},
        "licenses": [{"url": url, "id": 4, "name": "Attribution License"}],
        "images": [
            {"license": 4, "file_name": "000000000009.jpg", "coco_url": "http://images.cocodataset.org/9", "id": 9},
            {"license": 4, "file_name": "000000000025.jpg", "coco_url": "http://images.cocodataset.org/25", "id": 25},
        ],
        "annotations": [
            {"image_id": 9, "id": 661611, "caption": "A street in the rain. "},
            {"image_id": 9, "id": 661977, "caption": "Another."},
        ],
    }
    objects = {
        "images": said["images"],
        "annotations": [
            {
                "segmentation": [[1, 2, 3, 4, 5, 6]],
                "iscrowd": 0,
                "image_id": 9,
                "bbox": [4.5, 2, 10, 8],
                "category_id": 3,
            }
        ],
        "categories": [{"supercategory": "vehicle", "id": 3, "name": "car"}],
    }
    files = {
        "train2017/000000000009.jpg": jpeg(seed=1),
        "train2017/000000000025.jpg": jpeg(seed=2),
        "val2017/000000000139.jpg": jpeg(seed=3),
        "stuffthingmaps/train2017/000000000009.png": label_png(ids=(0, 181, 255)),
        "stuffthingmaps/train2017/000000000025.png": label_png(ids=(0, 11)),
        "stuffthingmaps/val2017/000000000139.png": label_png(ids=(2, 148)),
        "annotations/captions_train2017.json": json.dumps(said).encode(),
        "annotations/instances_train2017.json": json.dumps(objects).encode(),
    }
    return write_files(root, files)


def camvid(root: Path) -> Path:
    files = {}
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for i in range(count):
            files[f"{split}/{split}_{i}.png"] = png(seed=i)
            files[f"{split}annot/{split}_{i}.png"] = label_png(ids=(0, 10, 11))
    return write_files(root, files)
