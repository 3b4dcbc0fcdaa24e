"""Open Images: the official CSV tables joined with a folder of pictures."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from layouts import SHARDS, boxes, pack_recipe, size_of
from make_images import decoded, jpeg, png, write_files

from semiocity.data import csv_files
from semiocity.data.plan import make_plan
from semiocity.data.recipe import load_recipe
from semiocity.data.sources.base import Entry
from semiocity.data.sources.openimages import OpenImagesSource, entries
from semiocity.data.sources.openimages_tables import Buckets, Sieve, read_table
from semiocity.errors import UserError

CLASSES = "/m/0cgh4,Building\n/m/0k4j,Car\n/m/07j7r,Tree\n/m/01bl7v,Boy\n"
IMAGE_IDS = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation\n"
)
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y\n"
)
LABELS = "ImageID,Source,LabelName,Confidence\n"
CC = "https://creativecommons.org/licenses/by/2.0/"


def image_line(id: str, subset: str, title: str = "A street", rotation: str = "0.0") -> str:
    page = "https://www.flickr.com/photos/me/1"
    author = 'Ana "A" Ruiz'.replace('"', '""')
    return f'{id},{subset},https://farm1.staticflickr.com/{id}_o.jpg,{page},{CC},{page},"{author}","{title}",1,x==,,{rotation}\n'


def box_line(id: str, label: str, corners: str, flags: str = "0,1,-1,0,0", confidence: str = "1") -> str:
    return f"{id},xclick,{label},{confidence},{corners},{flags},,,,,,,,\n"


def tree(root: Path) -> Path:
    """Six pictures: a building, a turned car, a tree, a building by a label, one that no table knows, one denied."""
    images = IMAGE_IDS + image_line("0001eeaf4aed83f9", "train", "Corner,\nat night", "0.0")
    files = {
        "class-descriptions-boxable.csv": CLASSES,
        "train-images-boxable-with-rotation.csv": images
        + image_line("000595fe6fee6369", "train", rotation="90.0")
        + image_line("0009bad4d8539bb4", "train", rotation="nan"),
        "validation-images-with-rotation.csv": IMAGE_IDS + image_line("000c4d66ce89aa69", "validation"),
        "test-images-with-rotation.csv": IMAGE_IDS + image_line("000d89b2bc28dad9", "test", rotation=""),
        "oidv6-train-annotations-bbox.csv": BOXES
        + box_line("0001eeaf4aed83f9", "/m/0cgh4", "0.25,0.75,0.5,1")
        + box_line("0001eeaf4aed83f9", "/m/07j7r", "0,0.25,0,0.5", "1,0,0,0,0")
        + box_line("ffffffffffffffff", "/m/0cgh4", "0,1,0,1")
        + box_line("000595fe6fee6369", "/m/0k4j", "0,0.5,0,0.25")
        + box_line("0009bad4d8539bb4", "/m/07j7r", "0,1,0,1"),
        "oidv7-val-annotations-human-imagelabels.csv": LABELS
        + "000c4d66ce89aa69,verification,/m/0cgh4,1\n000c4d66ce89aa69,crowdsource-verification,/m/01bl7v,0\n"
        + "000c4d66ce89aa69,verification,/m/0k4j,1\n",
        "test-annotations-human-imagelabels.csv": LABELS + "000d89b2bc28dad9,verification,/m/0cgh4,0\n",
        "test-annotations-machine-imagelabels.csv": LABELS + "000d89b2bc28dad9,machine,/m/0cgh4,0.9\n",
        "train-annotations-object-segmentation.csv": "MaskPath,ImageID,LabelName,BoxID,BoxXMin\na,b,c,d,e\n",
        "notes.csv": "",
    }
    write_files(root, {name: text.encode() for name, text in files.items()})
    pictures = {
        "train/0001eeaf4aed83f9": jpeg(seed=1),
        "train/000595fe6fee6369": png(seed=2),
        "train/0009bad4d8539bb4": jpeg(seed=3),
        "validation/000c4d66ce89aa69": jpeg(seed=4),
        "test/000d89b2bc28dad9": jpeg(seed=5),
        "train/0123456789abcdef": jpeg(seed=6),
    }
    return write_files(root, {f"{name}.jpg": data for name, data in pictures.items()})


def test_openimages(tmp_path: Path) -> None:
    rows, rejected, dataset = pack_recipe("openimages", tree(tmp_path / "in"), tmp_path / "out")
    assert dataset.splits == {"train": 2, "val": 1}
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "train/0009bad4d8539bb4.jpg": "class_unwanted",
        "test/000d89b2bc28dad9.jpg": "class_unwanted",
        "train/0123456789abcdef.jpg": "not_listed",
    }
    row = rows["train/0001eeaf4aed83f9.jpg"]
    assert boxes(row) == [
        {
            "label": "Building",
            "bbox": [12, 16, 24, 16],
            "attributes": {"occluded": False, "truncated": True, "depiction": False, "inside": False},
        },
        {
            "label": "Tree",
            "bbox": [0, 0, 12, 16],
            "attributes": {
                name: name == "occluded" for name in ("occluded", "truncated", "group_of", "depiction", "inside")
            },
        },
    ]
    meta = row["meta"]
    assert (meta["license"], meta["author"], meta["split"]) == (CC, 'Ana "A" Ruiz', "train")
    assert meta["title"] == "Corner,\nat night"
    assert meta["origin"] == "https://farm1.staticflickr.com/0001eeaf4aed83f9_o.jpg"
    verified = rows["validation/000c4d66ce89aa69.jpg"]
    assert verified["meta"]["labels"] == "Building; Car"
    assert verified["boxes"] is None


def test_rotation_turns_picture_and_boxes(tmp_path: Path) -> None:
    root = tree(tmp_path / "in")
    rows, _, _ = pack_recipe("openimages", root, tmp_path / "one")
    row = rows["train/000595fe6fee6369.jpg"]
    assert np.array_equal(decoded(row["image"]), np.rot90(decoded(png(seed=2))))
    # 0 to 24 of 48 across and 0 to 8 of 32 down, turned counterclockwise: the lower left.
    assert [box["bbox"] for box in boxes(row)] == [[0, 24, 8, 24]]
    assert row["meta"]["changes"] == ["rotation 90"]
    rows, _, _ = pack_recipe("openimages", root, tmp_path / "two", "source.rotate=false")
    assert size_of(rows["train/000595fe6fee6369.jpg"]["image"]) == (48, 32)
    assert [box["bbox"] for box in boxes(rows["train/000595fe6fee6369.jpg"])] == [[0, 0, 24, 8]]


def test_classes_confidence_and_machines(tmp_path: Path) -> None:
    root = tree(tmp_path / "in")

    def packed(name: str, *sets: str) -> set[str]:
        rows, _, _ = pack_recipe("openimages", root, tmp_path / name, *(f"source.{item}" for item in sets))
        return {Path(file).stem[-4:] for file in rows}

    assert packed("trees", 'classes=["tree"]') == {"83f9", "9bb4"}
    assert packed("any", "classes=[]") == {"83f9", "6369", "9bb4", "aa69", "dad9"}
    assert packed("machines", "machine_labels=true") == {"83f9", "6369", "aa69", "dad9"}
    assert packed("sure", "machine_labels=true", "min_confidence=0.95") == {"83f9", "6369", "aa69"}


def test_only_matching_keeps_the_wanted_boxes(tmp_path: Path) -> None:
    sets = ('source.classes=["Building"]', "source.only_matching=true")
    rows, _, _ = pack_recipe("openimages", tree(tmp_path / "in"), tmp_path / "out", *sets)
    assert [box["label"] for box in boxes(rows["train/0001eeaf4aed83f9.jpg"])] == ["Building"]
    assert rows["validation/000c4d66ce89aa69.jpg"]["meta"]["labels"] == "Building"


def test_folders_as_fiftyone_downloads_them(tmp_path: Path) -> None:
    root = tree(tmp_path / "flat")
    names = {
        "class-descriptions-boxable.csv": "train/metadata/classes.csv",
        "train-images-boxable-with-rotation.csv": "train/metadata/image_ids.csv",
        "oidv6-train-annotations-bbox.csv": "train/labels/detections.csv",
        "train/0001eeaf4aed83f9.jpg": "train/data/0001eeaf4aed83f9.jpg",
    }
    moved = write_files(tmp_path / "in", {new: (root / old).read_bytes() for old, new in names.items()})
    rows, rejected, _ = pack_recipe("openimages", moved, tmp_path / "out")
    assert (list(rows), rejected) == (["train/data/0001eeaf4aed83f9.jpg"], {})


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("images", r"no table of image ids; expected is Open Images V7.*class descriptions"),
        ("class-descriptions", "no table of class descriptions"),
        ("annotations", "no table of boxes or labels"),
    ],
)
def test_absent_tables_are_named(tmp_path: Path, absent: str, message: str) -> None:
    root = tree(tmp_path / "in")
    for path in root.glob("*.csv"):
        if absent in path.name and "segmentation" not in path.name:
            path.unlink()
    with pytest.raises(UserError, match=message):
        make_plan(load_recipe(SHARDS / "openimages.toml", [f"source.root={root}"]), tmp_path / "out")


def test_a_class_that_does_not_exist_is_refused_with_those_near_it(tmp_path: Path) -> None:
    sets = [f"source.root={tree(tmp_path / 'in')}", 'source.classes=["Bilding"]']
    with pytest.raises(UserError, match=r"source\.classes: .* no Bilding; near are Building"):
        make_plan(load_recipe(SHARDS / "openimages.toml", sets), tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("train-images-boxable-with-rotation.csv", image_line("0001eeaf4aed83f9", "train", rotation="45")),
        ("train-images-boxable-with-rotation.csv", image_line("0001eeaf4aed83f9", "elsewhere")),
        ("oidv6-train-annotations-bbox.csv", box_line("0001eeaf4aed83f9", "/m/0k4j", "0,x,0,1")),
        ("oidv6-train-annotations-bbox.csv", "0001eeaf4aed83f9,xclick\n"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, table: str, line: str) -> None:
    root = tree(tmp_path / "in")
    with (root / table).open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=table):
        make_plan(load_recipe(SHARDS / "openimages.toml", [f"source.root={root}"]), tmp_path / "out")


def test_memory_does_not_grow_with_the_tables(tmp_path: Path) -> None:
    """Ten times the lines about ten times the pictures: far less than ten times the memory."""
    peaks = {}
    for count in (1_000, 10_000):
        root = tmp_path / str(count)
        ids = [f"{i * 2654435761 % 2**64:016x}" for i in range(count)]
        write_files(root, {"classes.csv": CLASSES.encode()})
        (root / "ids.csv").write_text(IMAGE_IDS + "".join(image_line(id, "train") for id in ids))
        with (root / "boxes.csv").open("w") as file:
            file.write(BOXES)
            file.writelines(box_line(id, "/m/0k4j", "0,1,0,1") for id in ids for _ in range(3))
        (root / "a").mkdir()
        for id in ids[:300]:
            (root / "a" / f"{id}.jpg").write_bytes(b"x")
        tracemalloc.start()
        try:
            found = sum(isinstance(item, Entry) for item in entries(OpenImagesSource(root=root)))
            peaks[count] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert found == 300
    assert peaks[10_000] < 1.3 * peaks[1_000] < 40e6


def test_buckets_give_back_every_fact_once(tmp_path: Path) -> None:
    ids = [f"{i:x}" for i in range(500)]
    with Buckets(tmp_path) as buckets:
        for id in ids:
            buckets.add(id, "a", [id])
        for id in ids[::2]:
            buckets.add(id, "b", [1])
            buckets.add(id, "b", [2])
        found = dict(buckets.images())
    assert sorted(found) == sorted(ids)
    assert found["0"] == {"a": [["0"]], "b": [[1], [2]]} and found["1"] == {"a": [["1"]]}
    assert list(tmp_path.iterdir()) == []


def test_a_sieve_keeps_all_that_was_added_and_little_else() -> None:
    sieve = Sieve()
    for i in range(2_000):
        sieve.add(f"{i:016x}")
    assert all(f"{i:016x}" in sieve for i in range(2_000))
    assert sum(f"{i:016x}" in sieve for i in range(10_000, 30_000)) < 10


def test_a_table_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffImageID,Title\nx,caf".encode() + b"\xe9\ny,\n\n")
    assert list(read_table(tmp_path / "a.csv", ["x"])) == [{"ImageID": "x", "Title": "caf\udce9"}]


def test_what_is_no_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('ImageID,Title\nx,"' + "a" * (csv_files.LONGEST_CELL + 1) + '"\n')
    with pytest.raises(UserError, match=r"a\.csv: line 2: no CSV: field larger"):
        list(read_table(tmp_path / "a.csv", ["x"]))
