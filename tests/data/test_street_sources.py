"""Datasets of streets and scenes in the layouts in which they are published, packed by the recipes that come along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import SHARDS, boxes, pack_recipe, size_of
from make_images import decoded, jpeg, write_files

from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe, load_recipe
from semiocity.data.sources import SOURCES
from semiocity.errors import UserError

STREETS = {
    "cityscapes": layouts.cityscapes,
    "bdd100k": layouts.bdd100k,
    "cmp_facade": layouts.cmp_facade,
    "ade20k": layouts.ade20k,
    "coco_stuff": layouts.coco_stuff,
    "camvid": layouts.camvid,
}


def meanings(dataset: object, row: dict[str, bytes]) -> set[str]:
    """Names of the classes in a row's label map."""
    names = [spec.name for spec in dataset.classes]  # type: ignore[attr-defined]
    return {names[i] if i < len(names) else "ignored" for i in np.unique(decoded(row["label"])).tolist()}


# ---------------------------------------------------------------- cityscapes


def test_cityscapes(tmp_path: Path) -> None:
    root = layouts.cityscapes(tmp_path / "in")
    rows, rejected, dataset = pack_recipe("cityscapes", root, tmp_path / "out")
    assert (dataset.splits, rejected) == ({"train": 2, "val": 1}, {})
    row = rows["leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"]
    assert row["meta"]["city"] == "aachen"
    assert meanings(dataset, row) == {"road", "car", "person"}
    # 26000 and 26001 are two cars; 7 is the class of what is no instance.
    assert np.unique(decoded(row["instance"])[0, [0, 20, 28, 40]]).tolist() == [0, 24000, 26000, 26001]
    assert decoded(row["instance"])[0, 0] == 0


def test_cityscapes_test_and_train_extra_are_packed_when_asked_for(tmp_path: Path) -> None:
    root = layouts.cityscapes(tmp_path / "in")
    rows, rejected, dataset = pack_recipe(
        "cityscapes", root, tmp_path / "out", 'source.splits=["val","test","train_extra"]'
    )
    assert (dataset.splits, rejected) == ({"test": 1, "train_extra": 1, "val": 1}, {})
    row = rows["leftImg8bit/test/berlin/berlin_000001_000019_leftImg8bit.png"]
    scored = {spec.name for spec in dataset.classes if spec.train_id is not None}
    assert not meanings(dataset, row) & scored
    coarse = rows["leftImg8bit/train_extra/bayreuth/bayreuth_000001_000019_leftImg8bit.png"]
    assert meanings(dataset, coarse) == {"road"} and not decoded(coarse["instance"]).any()


def test_cityscapes_coarse(tmp_path: Path) -> None:
    sets = ('source.splits=["train"]', "source.labels=coarse")
    rows, rejected, dataset = pack_recipe("cityscapes", layouts.cityscapes(tmp_path / "in"), tmp_path / "out", *sets)
    assert meanings(dataset, rows["leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"]) == {"road"}
    zurich = "leftImg8bit/train/zurich/zurich_000001_000019_leftImg8bit.png"
    assert {name: reason for name, (reason, _) in rejected.items()} == {zurich: "label_missing"}


def test_cityscapes_in_train_ids(tmp_path: Path) -> None:
    root = layouts.cityscapes(tmp_path / "in")
    rows, _, dataset = pack_recipe("cityscapes-19", root, tmp_path / "out", 'source.splits=["train","test"]')
    assert [spec.train_id for spec in dataset.classes] == list(range(19))
    row = rows["leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"]
    assert meanings(dataset, row) == {"road", "car", "person"}
    test = rows["leftImg8bit/test/berlin/berlin_000001_000019_leftImg8bit.png"]
    assert meanings(dataset, test) == {"ignored"}


def test_cityscapes_instances_survive_shrinking(tmp_path: Path) -> None:
    root = layouts.cityscapes(tmp_path / "in")
    sets = ("image.resize=crop", "image.size=[24,16]")
    rows, _, _ = pack_recipe("cityscapes", root, tmp_path / "out", *sets)
    row = rows["leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png"]
    assert size_of(row["image"]) == size_of(row["label"]) == size_of(row["instance"]) == (24, 16)
    assert np.unique(decoded(row["instance"])).tolist() == [0, 24000, 26000, 26001]


# ---------------------------------------------------------------- bdd100k


def test_bdd100k_with_label_maps(tmp_path: Path) -> None:
    rows, rejected, dataset = pack_recipe("bdd100k", layouts.bdd100k(tmp_path / "in"), tmp_path / "out")
    assert dataset.splits == {"train": 2, "val": 1}
    assert rejected == {"images/10k/train/no map.jpg": ("label_missing", "promised by the recipe")}
    row = rows["images/10k/train/b.jpg"]
    assert meanings(dataset, row) == {"road", "bicycle", "ignored"}
    # b.jpg is train here and val in det_20, where its weather and its one box with corners are.
    assert row["meta"]["weather"] == "snowy"
    assert [box["label"] for box in boxes(row)] == ["car"]
    assert rows["images/10k/train/c.jpg"]["meta"].get("weather") is None
    assert rows["images/10k/train/c.jpg"]["boxes"] is None


def test_bdd100k_with_boxes(tmp_path: Path) -> None:
    rows, rejected, dataset = pack_recipe("bdd100k-boxes", layouts.bdd100k(tmp_path / "in"), tmp_path / "out")
    assert dataset.splits == {"train": 2, "val": 1}
    assert rejected == {"images/100k/train/unknown.jpg": ("boxes_missing", "promised by the recipe")}
    row = rows["images/100k/train/a.jpg"]
    assert {name: row["meta"][name] for name in ("weather", "scene", "timeofday")} == {
        "weather": "rainy",
        "scene": "city street",
        "timeofday": "daytime",
    }
    attributes = {"occluded": False, "truncated": True, "trafficLightColor": "NA"}
    assert boxes(row) == [{"label": "car", "bbox": [8.5, 4, 32, 16], "attributes": attributes}]
    assert boxes(rows["images/100k/train/empty.jpg"]) == []


def test_bdd100k_weather_is_in_the_index(tmp_path: Path) -> None:
    _, _, dataset = pack_recipe("bdd100k-boxes", layouts.bdd100k(tmp_path / "in"), tmp_path / "out")
    assert dataset.column("base").scalars.items() >= {"weather": "str", "scene": "str", "timeofday": "str"}.items()


@pytest.mark.parametrize("content", [b"[{", b'[{"name": "a.jpg", "labels": [{"box2d": {"x1": 1}}]}]', b"[3]", b'"a"'])
def test_bdd100k_with_other_boxes_is_refused(tmp_path: Path, content: bytes) -> None:
    root = layouts.bdd100k(tmp_path / "in")
    (root / "labels/det_20/det_train.json").write_bytes(content)
    with pytest.raises(UserError, match=r"det_train\.json"):
        make_plan(load_recipe(SHARDS / "bdd100k-boxes.toml", [f"source.root={root}"]), tmp_path / "out")


# ---------------------------------------------------------------- cmp facade


def test_cmp_facade(tmp_path: Path) -> None:
    root = layouts.cmp_facade(tmp_path / "in")
    sets = ('splits.files={val="splits/cmp_facade/val.txt"}',)
    rows, rejected, dataset = pack_recipe("cmp_facade", root, tmp_path / "out", *sets)
    assert (dataset.splits, rejected) == ({"train": 2, "val": 1}, {})
    row = rows["base/cmp_b0001.jpg"]
    assert np.array_equal(decoded(row["label"])[0], np.repeat(np.arange(12), 4))
    assert boxes(row) == [
        {"label": "window", "bbox": [12, 16, 12, 8], "attributes": {}},
        {"label": "facade", "bbox": [0, 0, 48, 32], "attributes": {}},
    ]
    assert rows["base/cmp_b0004.jpg"]["meta"]["split"] == "val"
    assert rows["extended/cmp_x0009.jpg"]["meta"]["part"] == "extended"


def test_the_split_of_cmp_facade_is_disjoint_and_known() -> None:
    numbers = {"base/cmp_b": 378, "extended/cmp_x": 228}
    known = {f"{name}{i:04d}" for name, last in numbers.items() for i in range(1, last + 1)}
    val, test = ((SHARDS / "splits/cmp_facade" / f"{s}.txt").read_text().splitlines() for s in ("val", "test"))
    assert len(val) == len(test) == 60
    assert len({*val, *test}) == 120 and {*val, *test} <= known


@pytest.mark.parametrize(
    "content", [b"<object><points>", b"<object><points/></object>", b'<!DOCTYPE a [<!ENTITY b "c">]>']
)
def test_cmp_facade_with_damaged_boxes(tmp_path: Path, content: bytes) -> None:
    root = layouts.cmp_facade(tmp_path / "in")
    (root / "base/cmp_b0001.xml").write_bytes(content)
    _, rejected, _ = pack_recipe("cmp_facade", root, tmp_path / "out", "splits.files={}")
    assert {name: reason for name, (reason, _) in rejected.items()} == {"base/cmp_b0001.jpg": "boxes_format"}


# ---------------------------------------------------------------- ade20k, coco-stuff, camvid


def test_ade20k(tmp_path: Path) -> None:
    rows, rejected, dataset = pack_recipe("ade20k", layouts.ade20k(tmp_path / "in"), tmp_path / "out")
    assert dataset.splits == {"train": 1, "val": 1}
    assert rejected == {"images/training/ADE_train_00000002.jpg": ("label_missing", "promised by the recipe")}
    row = rows["images/training/ADE_train_00000001.jpg"]
    assert meanings(dataset, row) == {"ignored", "wall", "flag"}
    assert row["meta"]["scene"] == "airport_terminal"
    assert meanings(dataset, rows["images/validation/ADE_val_00000001.jpg"]) == {"road", "building"}


def test_a_few_classes_of_many(tmp_path: Path) -> None:
    """Streets out of ADE20K: everything else is ignored."""
    classes = 'classes=[{name="building",color=[180,120,120],ids=[2,26,49]},{name="road",color=[140,140,140],ids=[7]}]'
    root = layouts.ade20k(tmp_path / "in")
    rows, _, dataset = pack_recipe("ade20k", root, tmp_path / "out", classes, "label.ignore_ids=others")
    assert meanings(dataset, rows["images/validation/ADE_val_00000001.jpg"]) == {"road", "building"}
    assert meanings(dataset, rows["images/training/ADE_train_00000001.jpg"]) == {"ignored"}


def test_coco_stuff(tmp_path: Path) -> None:
    rows, rejected, dataset = pack_recipe("coco_stuff", layouts.coco_stuff(tmp_path / "in"), tmp_path / "out")
    assert dataset.splits == {"train": 1, "val": 1}
    # 11 is one of the ids that no picture has.
    assert rejected["train2017/000000000025.jpg"][0] == "label_range"
    row = rows["train2017/000000000009.jpg"]
    assert meanings(dataset, row) == {"person", "wood", "ignored"}
    assert row["caption"] == b"A street in the rain."
    assert row["meta"]["license"] == "http://creativecommons.org/licenses/by/2.0/"
    assert row["meta"]["origin"] == "http://images.cocodataset.org/9"
    assert boxes(row) == [{"label": "car", "bbox": [4.5, 2, 10, 8], "attributes": {"crowd": False}}]
    other = rows["val2017/000000000139.jpg"]
    assert meanings(dataset, other) == {"car", "road"}
    assert other["caption"] is None and other["boxes"] is None
    assert "own licence" in other["meta"]["license"]


def test_coco_stuff_as_its_authors_unpack_it(tmp_path: Path) -> None:
    root = layouts.coco_stuff(tmp_path / "in")
    (root / "images").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).rename(root / "images" / split)
        (root / "stuffthingmaps" / split).rename(root / "annotations" / split)
    rows, _, dataset = pack_recipe("coco_stuff", root, tmp_path / "out")
    assert dataset.splits == {"train": 1, "val": 1}
    assert rows["images/train2017/000000000009.jpg"]["caption"] == b"A street in the rain."


def test_camvid_with_its_test_split(tmp_path: Path) -> None:
    rows, rejected, dataset = pack_recipe("camvid", layouts.camvid(tmp_path / "in"), tmp_path / "out")
    assert (dataset.splits, rejected) == ({"test": 1, "train": 2, "val": 1}, {})
    assert meanings(dataset, rows["test/test_0.png"]) == {"sky", "bicyclist", "ignored"}


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("kind", sorted(kind for kind, module in SOURCES.items() if module.CLASSES))
def test_classes_have_names_colours_and_ids_of_their_own(kind: str, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "source": {"kind": kind, "root": str(tmp_path)} if kind != "city" else {"kind": kind}}
    )
    classes = recipe.classes or ()
    assert len({c.name for c in classes}) == len({c.color for c in classes}) == len(classes) > 1
    ids = [i for c in classes for i in c.ids or ()]
    assert len(set(ids)) == len(ids)
    trained = sorted(c.train_id for c in classes if c.train_id is not None)
    assert trained == list(range(len(trained)))


def test_numbers_of_classes() -> None:
    counts = {kind: len(module.CLASSES or ()) for kind, module in SOURCES.items()}
    expected = {"cityscapes": 34, "bdd100k": 19, "cmp_facade": 12, "ade20k": 150, "coco_stuff": 171, "camvid": 11}
    assert counts.items() >= expected.items()
    assert sum(c.train_id is not None for c in SOURCES["cityscapes"].CLASSES) == 19


@pytest.mark.parametrize("name", [*STREETS, "bdd100k-boxes"])
def test_a_folder_that_is_something_else_is_told_what_is_expected(name: str, tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": jpeg()})
    with pytest.raises(UserError, match=r"source\.root: .* expected is .*\*?\.(png|jpg)|trainannot"):
        make_plan(load_recipe(SHARDS / f"{name}.toml", [f"source.root={root}"]), tmp_path / "out")


@pytest.mark.parametrize("kind", ["cityscapes", "bdd100k", "ade20k", "coco_stuff"])
@pytest.mark.parametrize("splits", [[], ["train", "train"], ["validation"]])
def test_splits_that_are_none_are_refused(kind: str, splits: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"splits"):
        Recipe.model_validate({"name": "x", "source": {"kind": kind, "root": str(tmp_path), "splits": splits}})


@pytest.mark.parametrize(("name", "make"), STREETS.items(), ids=STREETS)
def test_pictures_that_do_not_fit_are_rejected_not_lost(
    name: str, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A stray picture, a link out of the root, a damaged picture, and a label map of another size."""
    root = make(tmp_path / "in")
    write_files(tmp_path / "secret", {"a.jpg": jpeg()})
    pictures = sorted(p for p in root.rglob("*") if p.suffix in (".jpg", ".png") and not _is_map(p.relative_to(root)))
    folder = next(p for p in pictures if "train" in str(p.relative_to(root)) or "base" in str(p)).parent
    (folder / "stray picture.v2.jpg").write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(tmp_path / "secret" / "a.jpg")
    victim = next(p for p in sorted(folder.iterdir()) if p in pictures)
    victim.write_bytes(victim.read_bytes()[:-40])
    _, rejected, _ = pack_recipe(name, root, tmp_path / "out", *({"cmp_facade": ["splits.files={}"]}.get(name, [])))
    below = str(folder.relative_to(root))
    reasons = {file: reason for file, (reason, _) in rejected.items() if file.startswith(below)}
    assert reasons[f"{below}/stray picture.v2.jpg"] == "label_missing"
    assert reasons[f"{below}/link.jpg"] == "outside_root"
    assert reasons[str(victim.relative_to(root))] == "image_damaged"


def _is_map(path: Path) -> bool:
    first = path.parts[0]
    return (
        first in ("gtFine", "gtCoarse", "labels", "annotations", "stuffthingmaps")
        or "annot" in first
        or (first in ("base", "extended") and path.suffix == ".png")
        or "100k" in path.parts
    )


def test_planning_streets_needs_neither_numpy_nor_pillow(tmp_path: Path) -> None:
    import subprocess
    import sys

    root = layouts.cityscapes(tmp_path / "in")
    code = (
        "import sys; from pathlib import Path; from semiocity.data.plan import make_plan; "
        "from semiocity.data.recipe import load_recipe; "
        "make_plan(load_recipe(Path(sys.argv[1]), ['source.root=' + sys.argv[2]]), Path(sys.argv[3])); "
        "print([name for name in ('numpy', 'PIL', 'pyarrow') if name in sys.modules])"
    )
    run = [sys.executable, "-c", code, str(SHARDS / "cityscapes.toml"), str(root), str(tmp_path / "out")]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_text_that_is_none_is_marked_in_the_index_and_rejected_as_a_caption(tmp_path: Path) -> None:
    """Half of a surrogate pair in a caption, bytes that are no UTF-8 in the name of a city."""
    root = layouts.coco_stuff(tmp_path / "coco")
    path = root / "annotations/captions_train2017.json"
    path.write_text(path.read_text().replace("A street in the rain. ", "A street \\ud83d"))
    _, rejected, _ = pack_recipe("coco_stuff", root, tmp_path / "one")
    assert rejected["train2017/000000000009.jpg"][0] == "caption_encoding"
    root = layouts.cityscapes(tmp_path / "cityscapes")
    odd = "z\udcfcrich"
    for top in ("leftImg8bit", "gtFine"):
        (root / top / "train/zurich").rename(root / top / "train" / odd)
    rows, _, _ = pack_recipe("cityscapes", root, tmp_path / "two")
    cities = {row["meta"]["city"] for row in rows.values() if row["meta"]["split"] == "train"}
    assert cities == {"aachen", "z\ufffdrich"}


@pytest.mark.parametrize("path", sorted(SHARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_loads_and_says_what_it_is(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, [] if path.stem == "city" else [f"source.root={tmp_path}"])
    resolved = recipe.resolved()
    assert recipe.name == path.stem and recipe.note
    assert str(tmp_path) not in str(resolved) and "folder" not in resolved
    assert len({c.color for c in recipe.classes or ()}) == len(recipe.classes or ())
    for file in recipe.splits.files.values():
        assert (path.parent / file).is_file()
