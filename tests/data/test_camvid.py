"""CamVid as published: pictures and colour maps in two folders, read as SegNet's 11 classes or with all 31."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from make_images import decoded, label_png, pack_rows, packed, png, write_files
from PIL import Image

from semiocity.data.recipe import load_recipe
from semiocity.data.sources.camvid import COLORS, split_of
from semiocity.errors import UserError

SHARDS = Path(__file__).parents[2] / "shards"
VOID, TREE, VEGETATION, CHILD = (0, 0, 0), (128, 128, 0), (192, 192, 0), (192, 128, 64)


def colour_map(*colors: tuple[int, int, int]) -> bytes:
    pixels = np.repeat(np.repeat(np.array([colors], dtype=np.uint8), 32, axis=0), 48 // len(colors), axis=1)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def published(root: Path) -> Path:
    names = ("0001TP_006690", "0001TP_008550", "0016E5_07959", "Seq05VD_f00000", "0006R0_f00930")
    files = {f"701_StillsRaw_full/{name}.png": png(seed=i) for i, name in enumerate(names)}
    files |= {f"LabeledApproved_full/{name}_L.png": colour_map(VOID, TREE, VEGETATION, CHILD) for name in names[:-1]}
    return write_files(root, files | {"LabeledApproved_full/0006R0_f00930_L.png": colour_map((1, 2, 3), TREE)})


@pytest.mark.parametrize(("name", "expected"), [("camvid", [11, 5, 5, 9]), ("camvid-32", [255, 14, 15, 26])])
def test_as_it_is_published(tmp_path: Path, name: str, expected: list[int]) -> None:
    root = published(tmp_path / "in")
    write_files(root, {"701_StillsRaw_full/0006R0_f00960.png": png(seed=9)})
    recipe = load_recipe(SHARDS / f"{name}.toml", [f"source.root={root}", 'image = {format = "png"}'])
    rows, rejected = pack_rows(recipe, tmp_path / "out")
    splits = {Path(name).stem: row["meta"]["split"] for name, row in rows.items()}
    assert splits == {
        "0001TP_006690": "train",
        "0001TP_008550": "test",
        "0016E5_07959": "val",
        "Seq05VD_f00000": "test",
    }
    assert {name.rpartition("/")[2]: reason for name, (reason, _) in rejected.items()} == {
        "0006R0_f00930.png": "label_color",
        "0006R0_f00960.png": "label_missing",
    }
    label = decoded(next(iter(rows.values()))["label"])
    assert label[0, ::12].tolist() == expected
    assert [c.name for c in recipe.classes or ()][expected[1]] == "tree"


def test_the_classes_of_both_recipes_agree(tmp_path: Path) -> None:
    paths = [SHARDS / f"{name}.toml" for name in ("camvid", "camvid-32")]
    few, all_of_them = (load_recipe(path, [f"source.root={tmp_path}"]).classes or () for path in paths)
    assert {c.color: c.train_id for c in all_of_them} == {c: own for c, own in COLORS.items() if c != VOID}
    assert len(all_of_them) == 31 and {c.train_id for c in all_of_them} == set(range(len(few)))
    for name in ("sky", "building", "road", "tree", "fence", "car", "pedestrian", "bicyclist"):
        own = next(i for i, c in enumerate(few) if c.name == name)
        assert next(c.train_id for c in all_of_them if c.name == name) == own


def test_the_split_is_segnets() -> None:
    """Names as the dataset has them, of all 701."""
    names = [f"0001TP_{i:06d}" for i in range(6690, 10381, 30)] + [f"Seq05VD_f{i:05d}" for i in range(0, 5101, 30)]
    names += [f"0006R0_f{i:05d}" for i in range(930, 3931, 30)] + [f"0016E5_{i:05d}" for i in range(7959, 8160, 2)]
    names += [f"0016E5_{i:05d}" for i in range(390, 390 + 204 * 30, 30)]
    splits = [split_of(f"701_StillsRaw_full/{name}") for name in names]
    counts = {split: splits.count(split) for split in ("val", "test")}
    assert (len(names), counts) == (701, {"val": 101, "test": 233})


def test_a_split_without_its_maps_is_no_small_dataset(tmp_path: Path) -> None:
    files = {f"{split}/{split}.png": png() for split in ("train", "val")}
    root = write_files(tmp_path / "in", {**files, "trainannot/train.png": label_png()})
    with pytest.raises(UserError, match="has no valannot/"):
        packed(load_recipe(SHARDS / "camvid.toml", [f"source.root={root}"]), tmp_path / "out")
    half = write_files(tmp_path / "half", {"701_StillsRaw_full/0001TP_006690.png": png()})
    with pytest.raises(UserError, match="has no LabeledApproved_full/"):
        packed(load_recipe(SHARDS / "camvid.toml", [f"source.root={half}"]), tmp_path / "out")
