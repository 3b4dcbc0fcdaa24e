"""The sources `huggingface` and `sidewalk`: what `datasets` saves, and what the Hub holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import CLASSES, jpeg, label_png, pack_rows, write_files

from semiocity.data.keys import fraction_of
from semiocity.data.pack import pack_shard
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe, load_recipe
from semiocity.data.sources import sidewalk
from semiocity.errors import UserError

SAVE = """
import sys
from pathlib import Path
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
sys.path.insert(0, sys.argv[2])
from make_images import jpeg, label_png
features = Features({
    "image": Image(), "annotation": Image(), "texts": List(Value("string")), "licence": Value("string"),
    "weather": ClassLabel(names=["sun", "rain"]), "score": Value("float32"),
})

def rows(first, count):
    numbers = range(first, first + count)
    return Dataset.from_dict({
        "image": [{"bytes": jpeg(seed=i), "path": f"{i}.jpg"} for i in numbers],
        "annotation": [{"bytes": label_png(), "path": None} if i % 3 else None for i in numbers],
        "texts": [[f"street {i}", "b"] for i in numbers],
        "weather": [i % 3 - 1 for i in numbers],
        "score": [i / 4 for i in numbers],
        "licence": ["CC0-1.0" if i % 2 else "" for i in numbers],
    }, features=features)

dataset = DatasetDict({"train": rows(0, 8), "validation": rows(8, 3), "night": rows(11, 2)})
folder = Path(sys.argv[1])
dataset.save_to_disk(folder / "saved", num_shards={"train": 3, "validation": 1, "night": 1})
rows(0, 2).save_to_disk(folder / "alone")
for split, part in dataset.items():
    part.to_parquet(folder / "parquet" / "data" / f"{split}-00000-of-00001.parquet", batch_size=3)
"""

SOURCE = {
    "label": "annotation",
    "caption": "texts",
    "license": "licence",
    "image": "image",
    "scalars": {"weather": "str", "weather_id": {"type": "int", "column": "weather"}, "score": "float"},
}


def recipe(root: Path, source: dict[str, Any], **changes: Any) -> Recipe:
    source = {"kind": "huggingface", "root": str(root), **source}
    return Recipe.model_validate({"name": "h", "source": source, "shard_rows": 5, "classes": CLASSES, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders written by the library itself."""
    pytest.importorskip("datasets", reason="the library `datasets` writes what is read here")
    folder = tmp_path_factory.mktemp("hf")
    command = [sys.executable, "-c", SAVE, str(folder), str(Path(__file__).parent)]
    environment = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_what_datasets_writes(saved: Path, tmp_path: Path, form: str) -> None:
    rows, rejected = pack_rows(recipe(saved / form, SOURCE, license="CC-BY-4.0"), tmp_path / "out")
    assert rejected == {}
    assert Counter(row["meta"]["split"] for row in rows.values()) == {"train": 8, "val": 3, "night": 2}
    first = {"train": 0, "val": 8, "night": 11}
    for id, row in rows.items():
        split, _, index = id.partition("/")
        i = first[split] + int(index)
        assert row["image"] == jpeg(seed=i)
        assert row["caption"] == f"street {i}".encode()
        assert (row["label"] is not None) == bool(i % 3)
        assert row["scalars"]["weather"] == [None, "sun", "rain"][i % 3]
        assert row["scalars"]["weather_id"] == i % 3 - 1
        assert row["scalars"]["score"] == i / 4
        assert row["scalars"]["license"] == ("CC0-1.0" if i % 2 else "CC-BY-4.0")


def test_one_split_saved_alone(saved: Path, tmp_path: Path) -> None:
    source = {"image": "image", "only": ["train"], "val_fraction": 0.99}
    rows, _ = pack_rows(recipe(saved / "alone", source), tmp_path / "out")
    assert sorted(rows) == ["train/00000000", "train/00000001"]
    with pytest.raises(UserError, match=r"source\.only: no split test; there are train"):
        make_plan(recipe(saved / "alone", {**source, "only": ["test"]}), tmp_path / "out")


def test_columns_are_checked(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 columns that may hold the pictures \(image, annotation\)"):
        make_plan(recipe(saved / "saved", {}), tmp_path / "out")
    with pytest.raises(UserError, match="holds no encoded pictures; columns that do: image, annotation"):
        make_plan(recipe(saved / "saved", {"image": "score"}), tmp_path / "out")
    with pytest.raises(UserError, match=r"source\.caption: .* has no column 'words'"):
        make_plan(recipe(saved / "saved", {"image": "image", "caption": "words"}), tmp_path / "out")
    with pytest.raises(UserError, match="neither"):
        make_plan(recipe(tmp_path, {}), tmp_path / "out")


def test_a_view_of_rows_is_refused(tmp_path: Path) -> None:
    state = json.dumps({"_indices_data_files": [{"filename": "indices.arrow"}]}).encode()
    root = write_files(tmp_path / "in", {"train/state.json": state, "train/data-00000-of-00001.arrow": b""})
    with pytest.raises(UserError, match="flatten_indices"):
        make_plan(recipe(root, {}), tmp_path / "out")


def test_damaged_files_are_named(saved: Path, tmp_path: Path) -> None:
    for form, name in (
        ("saved", "validation/data-00000-of-00001.arrow"),
        ("parquet", "data/night-00000-of-00001.parquet"),
    ):
        data = (saved / form / name).read_bytes()
        root = write_files(tmp_path / form, {name: data[: len(data) // 2]})
        with pytest.raises(UserError, match=r"00000-of-00001.* cannot be read: .*; fetch it again"):
            make_plan(recipe(root, {"image": "image"}), tmp_path / "out")


def test_pictures_that_are_not_embedded(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"pictures/a.jpg": jpeg(), "part": b""})
    paths = ["pictures/a.jpg", "../outside.jpg", "gone.jpg", None]
    write_files(tmp_path, {"outside.jpg": jpeg()})
    table = pa.table({"image": [{"bytes": None, "path": path} for path in paths]})
    pq.write_table(table, root / "part.parquet")
    rows, rejected = pack_rows(recipe(root, {}, classes=None), tmp_path / "out")
    assert {name: row["image"] for name, row in rows.items()} == {"train/00000000": jpeg()}
    assert [rejected[f"train/{i:08d}"][0] for i in (1, 2, 3)] == ["outside_root", "image_missing", "image_missing"]


def test_without_pyarrow_the_command_says_what_to_install(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.parquet": b"x"})
    code = f"""
import sys
sys.modules["pyarrow"] = None
from pathlib import Path
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
recipe = Recipe.model_validate({{"name": "h", "source": {{"kind": "huggingface", "root": {str(root)!r}}}}})
make_plan(recipe, Path({str(tmp_path / "out")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "semiocity[data]"' in done.stderr


# ---------------------------------------------------------------- sidewalk


def sidewalk_folder(root: Path, rows: int = 40) -> Path:
    """Two files as the Hub has them: structs of bytes and path, and nothing else."""
    (root / "data").mkdir(parents=True)
    for part in range(2):
        numbers = range(part * rows // 2, (part + 1) * rows // 2)
        table = pa.table(
            {
                "pixel_values": [{"bytes": jpeg(32, 24, seed=i), "path": None} for i in numbers],
                "label": [{"bytes": label_png(32, 24, ids=(0, 1, 34)), "path": None} for _ in numbers],
            }
        )
        pq.write_table(table, root / "data" / f"train-{part:05d}-of-00002.parquet", row_group_size=8)
    return root


def test_sidewalk(tmp_path: Path) -> None:
    root = sidewalk_folder(tmp_path / "in")
    path = Path(__file__).parents[2] / "shards" / "sidewalk.toml"
    made = load_recipe(path, [f"source.root={root}", "image.size=[24,24]"])
    rows, rejected = pack_rows(made, tmp_path / "out")
    assert (len(rows), rejected) == (40, {})
    for id, row in rows.items():
        assert row["meta"]["split"] == ("val" if fraction_of(id, "split") < 0.1 else "train")
        assert row["scalars"]["license"] == row["meta"]["license"] == made.license
        assert row["scalars"]["origin"] == f"segments/sidewalk-semantic {id}"
        assert row["label"] is not None
    assert {row["meta"]["split"] for row in rows.values()} == {"train", "val"}


def test_the_split_of_sidewalk_is_published() -> None:
    """These rows are val, for everybody and for ever."""
    val = [i for i in range(1000) if fraction_of(f"train/{i:05d}", "split") < 0.1]
    assert (len(val), val[:8], sum(val)) == SPLIT


SPLIT = (93, [16, 56, 61, 76, 88, 90, 91, 98], 45428)


def test_sidewalk_has_35_classes_with_a_colour_each() -> None:
    assert len(sidewalk.CLASSES) == len({item.color for item in sidewalk.CLASSES}) == 35
    assert [sidewalk.CLASSES[i].name for i in (0, 4, 17, 27, 30, 34)] == [
        "unlabeled",
        "flat-cyclinglane",
        "vehicle-cartrailer",
        "object-trafficlight",
        "sky",
        "void-unclear",
    ]


def test_a_sidewalk_file_that_changed_is_refused(tmp_path: Path) -> None:
    root = sidewalk_folder(tmp_path / "in")
    made = Recipe.model_validate({"name": "s", "source": {"kind": "sidewalk", "root": str(root)}})
    plan = make_plan(made, tmp_path / "out")
    path = root / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet no longer has"):
        pack_shard(plan, 0, plan.path(0))
    (root / "data").rename(tmp_path / "other")
    with pytest.raises(UserError, match=r"no data/train-\*\.parquet"):
        make_plan(made, tmp_path / "out2")
