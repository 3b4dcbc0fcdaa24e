"""Generated pictures with a table of the prompts that made them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import SHARDS, pack_recipe
from make_images import CLASSES, decoded, jpeg, label_png, png, write_files

from semiocity.data import csv_files
from semiocity.data.plan import make_plan
from semiocity.data.recipe import load_recipe
from semiocity.errors import UserError

TABLE = (
    "filename,prompt,seed,steps,cfg,model\n"
    'a.png,"A brutalist block, at dusk\nwet street",18446744073709551615,28,3.5,flux1-dev\n'
    "images/night/b.png,Neon,7,20,,\n"
)


def tree(root: Path, table: str = "prompts.csv", content: str = TABLE) -> Path:
    files = {
        "images/a.png": png(seed=1),
        "images/night/b.png": png(seed=2),
        "images/c.jpg": jpeg(),
        "annotations/a.png": label_png(),
        "Imaginary Cities Generation Workflow.json": b'{"nodes": []}',
        table: content.encode(),
    }
    return write_files(root, files)


def test_prompts_are_captions_and_settings_scalars(tmp_path: Path) -> None:
    classes = "classes=[" + ",".join(f"{{name='{c['name']}',color={[*c['color']]}}}" for c in CLASSES) + "]"
    rows, rejected, dataset = pack_recipe("imaginary_cities", tree(tmp_path / "in"), tmp_path / "out", classes)
    assert rejected == {"images/c.jpg": ("not_listed", "the table of prompts has no line for it")}
    row = rows["images/a.png"]
    assert row["caption"] == b"A brutalist block, at dusk\nwet street"
    assert np.array_equal(decoded(row["label"]), decoded(label_png()))
    settings = {"seed": "18446744073709551615", "steps": 28, "guidance": 3.5, "model": "flux1-dev"}
    assert row["meta"].items() >= settings.items()
    other = rows["images/night/b.png"]
    assert (other["caption"], other["label"], other["meta"]["seed"]) == (b"Neon", None, "7")
    assert "guidance" not in other["meta"]
    assert dataset.column("base").scalars.items() >= {"seed": "str", "steps": "int", "guidance": "float"}.items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.json", [{"image": "a.png", "prompt": "A", "seed": 3}]),
        ("metadata.json", {"version": 2, "images": [{"file_name": "images/a.png", "text": "A", "noise_seed": 3}]}),
        ("prompts.json", {"a.png": {"prompt": "A", "seed": 3}}),
        ("made.jsonl", [{"path": "images\\a.png", "Prompt": "A", "Seed": 3}]),
    ],
)
def test_json_of_any_shape(tmp_path: Path, name: str, content: object) -> None:
    lines = json.dumps(content)
    if isinstance(content, list) and name.endswith("jsonl"):
        lines = "\n".join(json.dumps(item) for item in content)
    root = tree(tmp_path / "in", name, lines)
    (root / "Imaginary Cities Generation Workflow.json").unlink()
    (root / "annotations/a.png").unlink()
    rows, rejected, _ = pack_recipe("imaginary_cities", root, tmp_path / "out")
    assert (list(rows), len(rejected)) == (["images/a.png"], 2)
    assert (rows["images/a.png"]["caption"], rows["images/a.png"]["meta"]["seed"]) == (b"A", "3")


def test_columns_of_other_names(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "data.csv", "bild,text_prompt\na.png,Ein Haus\n")
    (root / "annotations/a.png").unlink()
    sets = ('source.columns={image="bild",prompt="text_prompt"}',)
    rows, _, _ = pack_recipe("imaginary_cities", root, tmp_path / "out", *sets)
    assert rows["images/a.png"]["caption"] == b"Ein Haus"


@pytest.mark.parametrize(
    ("name", "content", "sets", "message"),
    [
        (
            "prompts.csv",
            "bild,prompt\na,b\n",
            [],
            r"row 1: no image; its column may be called image, .*There are bild, prompt",
        ),
        ("prompts.csv", "image,seed\na,3\n", [], r"row 1: no prompt.*source\.columns\.prompt"),
        ("prompts.csv", "image,prompt\na,b\n", ['source.columns={seed="x"}'], r"source\.columns\.seed: .* no x"),
        ("prompts.csv", "image,prompt,steps\na,b,many\n", [], "row 1: steps is 'many'; a number is expected"),
        ("prompts.csv", "image,prompt\na.png,b\na.png,c\n", [], "row 2: a has another row"),
        ("prompts.jsonl", '{"image": \n', [], "line 1: damaged JSON"),
        ("prompts.json", "[3]", [], "row 1: an object with the picture's name"),
        ("a.csv", TABLE, ["source.prompts=b.csv"], r"b\.csv: no such file"),
        ("a.csv", TABLE, ["source.images=pictures"], r"source\.images: .* has no pictures/"),
        ("readme.txt", "", [], r"Workflow\.json: no rows; expected is images/"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, content: str, sets: list[str], message: str) -> None:
    root = tree(tmp_path / "in", name, content)
    with pytest.raises(UserError, match=message):
        make_plan(load_recipe(SHARDS / "imaginary_cities.toml", [f"source.root={root}", *sets]), tmp_path / "out")


def test_a_cell_without_an_end(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "prompts.csv", "image,prompt\na," + "x" * (csv_files.LONGEST_CELL + 1) + "\n")
    with pytest.raises(UserError, match=r"prompts\.csv: no CSV: field larger"):
        make_plan(load_recipe(SHARDS / "imaginary_cities.toml", [f"source.root={root}"]), tmp_path / "out")


def test_two_tables_are_a_question(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "a.csv")
    write_files(root, {"b.csv": TABLE.encode()})
    with pytest.raises(UserError, match=r"which file has the prompts, a\.csv, b\.csv\? Say source\.prompts"):
        make_plan(load_recipe(SHARDS / "imaginary_cities.toml", [f"source.root={root}"]), tmp_path / "out")


def test_no_table_at_all(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"images/a.png": png()})
    with pytest.raises(UserError, match="no file of prompts; expected is images/, a"):
        make_plan(load_recipe(SHARDS / "imaginary_cities.toml", [f"source.root={root}"]), tmp_path / "out")
