"""The recipes that come along: each loads, is described, tells what to put where, and offers what works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from semiocity.config import check
from semiocity.data.recipe import Recipe, load_recipe

SHARDS = Path(__file__).parents[2] / "shards"
RECIPES = sorted(path.stem for path in SHARDS.glob("*.toml"))
OFFERED = re.compile(r"# (\[\[?[a-z_.]+\]\]?( +#.*)?|[a-z_]+ = .*)")
"""A line of TOML in a comment."""


def load(name: str, tmp_path: Path) -> Recipe:
    return load_recipe(SHARDS / f"{name}.toml", [] if name == "city" else [f"source.root={tmp_path}"])


def comment_of(name: str) -> str:
    """The comment that a recipe begins with, as one line."""
    lines = (SHARDS / f"{name}.toml").read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in head)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_is_listed(name: str, tmp_path: Path) -> None:
    recipe = load(name, tmp_path)
    assert recipe.name == name and recipe.note
    assert re.search(rf"^\| .*`{name}`.* \|", (SHARDS / "README.md").read_text(), re.MULTILINE), "shards/README.md"


def test_the_list_names_no_recipe_that_is_not_there() -> None:
    table = (SHARDS / "README.md").read_text().partition("| recipe |")[2].partition("\n\n")[0]
    listed = {name for line in table.splitlines() for name in re.findall(r"`([\w-]+)`", line.split("|")[1])}
    assert listed == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_classes_of_every_recipe_can_be_told_apart(name: str, tmp_path: Path) -> None:
    recipe = load(name, tmp_path)
    classes = recipe.classes or ()
    assert len({spec.color for spec in classes}) == len({spec.name for spec in classes}) == len(classes)
    (told,) = re.findall(rf"^\| .*`{name}`.*? \| .*? \| (.*?) \|", (SHARDS / "README.md").read_text(), re.MULTILINE)
    if not name.startswith("cityscapes"):
        assert told.isdigit() == bool(classes) and (not classes or int(told) in (len(classes), len(classes) - 1))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "city"])
def test_every_recipe_says_where_its_files_go(name: str) -> None:
    assert "--set source.root=DIR" in comment_of(name)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        (
            "openimages",
            ["oidv7-class-descriptions.csv", "annotations-bbox.csv", "human-imagelabels.csv", "ImageID.jpg"],
        ),
        ("imaginary_cities", ["prompts.csv", "images/", "annotations/", "image,prompt,seed"]),
        ("bdd100k", ["bdd100k_sem_seg_labels_trainval.zip", "labels/sem_seg/masks", "images/10k", "det_20"]),
        ("bdd100k-boxes", ["bdd100k_det_20_labels_trainval.zip", "images/100k", "labels/det_20"]),
    ],
)
def test_official_downloads_are_named(name: str, named: list[str]) -> None:
    assert [text for text in named if text not in comment_of(name)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_comment_offers_works_when_it_is_switched_on(name: str, tmp_path: Path) -> None:
    """Each block of commented keys, in place of the lines that set the same keys."""
    lines = (SHARDS / f"{name}.toml").read_text().splitlines()
    offered = [bool(OFFERED.fullmatch(line)) for line in lines]
    for start in (i for i in range(len(lines)) if offered[i] and not offered[i - 1]):
        end = next((i for i in range(start, len(lines)) if not offered[i]), len(lines))
        mine = [line.removeprefix("# ") for line in lines[start:end]]
        keys = {line.partition(" =")[0] for line in mine}
        keys |= {key for line in mine for key in re.findall(r"# instead of (\w+)", line)}
        before = [line for line in lines[:start] if line.partition(" =")[0] not in keys]
        after = [line for line in lines[end:] if line.partition(" =")[0] not in keys]
        data = tomllib.loads("\n".join([*before, *mine, *after]))
        data["source"].setdefault("root", str(tmp_path))
        check({"name": name, "folder": SHARDS, **data}, Recipe, where=f"{name}.toml, line {start + 1}")
