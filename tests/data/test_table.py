"""The source `table`: CSV and parquet of paths or bytes, with what else is known of each picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import CLASSES, folder_recipe, jpeg, label_png, pack_rows, packed, write_files

from semiocity.data.keys import to_text
from semiocity.data.pack import pack_shard
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.errors import UserError


def recipe(root: Path, source: dict[str, Any], **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "source": {"kind": "table", "root": str(root), **source}, "shard_rows": 6, **changes}
    )


CSV = """photo,mask,words,part,terms,url,score,night,extra
a/1.jpg,m/1.png,"one, two
lines",training,CC0-1.0,http://x/1,0.5,true,x
./a/2.jpg,,,validation,,,,,
a/3.jpg,m/gone.png,three,train,,,1,no,
gone.jpg,,,train,,,1,no,
../secret.jpg,,,train,,,1,no,
,,,train,,,1,no,
a/4.jpg,,,not a split,,,1,no,
a/5.jpg,,,train,,,high,no,
"""

ALL = {
    "table": "list.csv",
    "image": "photo",
    "label": "mask",
    "caption": "words",
    "split": "part",
    "license": "terms",
    "origin": "url",
    "scalars": {"score": "float", "is_night": {"type": "bool", "column": "night"}},
}


def files(root: Path) -> Path:
    write_files(root.parent, {"secret.jpg": jpeg()})
    pictures = {f"a/{i}.jpg": jpeg(seed=i) for i in range(1, 6)}
    return write_files(root, {**pictures, "m/1.png": label_png(), "list.csv": CSV.encode()})


def test_a_csv_of_paths(tmp_path: Path) -> None:
    rows, rejected = pack_rows(
        recipe(files(tmp_path / "in"), ALL, classes=CLASSES, license="CC-BY-4.0"), tmp_path / "out"
    )
    assert sorted(rows) == ["a/1.jpg", "a/2.jpg"]
    first, second = rows["a/1.jpg"], rows["a/2.jpg"]
    assert first["image"] == jpeg(seed=1) and second["image"] == jpeg(seed=2)
    assert (first["caption"], second["caption"]) == (b"one, two\nlines", None)
    assert first["label"] is not None and second["label"] is None
    facts = ("split", "license", "origin", "score", "is_night")
    assert [first["meta"][name] for name in facts] == ["train", "CC0-1.0", "http://x/1", 0.5, True]
    assert [second["meta"][name] for name in facts[:3]] == ["val", "CC-BY-4.0", None]
    assert [second["scalars"][name] for name in facts[3:]] == [None, None]
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "list.csv, row 2": "label_missing",
        "list.csv, row 3": "image_missing",
        "../secret.jpg": "outside_root",
        "list.csv, row 5": "image_missing",
        "list.csv, row 6": "split_name",
        "list.csv, row 7": "scalar_value",
    }
    assert "'high' is no float" in rejected["list.csv, row 7"][1]


def test_keys_are_those_of_the_source_folder(tmp_path: Path) -> None:
    """So that a table that is written later changes no key."""
    root = write_files(tmp_path / "in", {"x/a b.jpg": jpeg(), "t.csv": b"image\nx/a b.jpg\n"})
    one, _ = pack_rows(recipe(root, {}), tmp_path / "one")
    other, _ = pack_rows(folder_recipe(root), tmp_path / "two")
    assert {name: row["key"] for name, row in one.items()} == {name: row["key"] for name, row in other.items()}


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_parquet_with_bytes(tmp_path: Path, compression: str) -> None:
    root = tmp_path / "in"
    for part in range(2):
        seeds = [10 * part + i for i in range(7)]
        parquet(
            root / "parts" / f"{part}.parquet",
            {
                "image": [jpeg(seed=seed) for seed in seeds],
                "label": [{"bytes": label_png() if seed % 2 else None, "path": None} for seed in seeds],
                "text": [[f"street {seed}", "another"] for seed in seeds],
                "name": [f"picture {seed}" for seed in seeds],
                "year": pa.array([2000 + seed for seed in seeds], pa.int16()),
            },
            row_group_size=3,
            compression=compression,
        )
    source = {
        "table": "parts/*.parquet",
        "label": "label",
        "caption": "text",
        "id": "name",
        "scalars": {"year": "int"},
        "val_fraction": 0.5,
    }
    rows, rejected = pack_rows(recipe(root, source, classes=CLASSES), tmp_path / "out")
    assert rejected == {}
    assert len(rows) == 14
    for name, row in rows.items():
        seed = int(name.split()[1])
        assert row["image"] == jpeg(seed=seed)
        assert (row["label"] is not None) == bool(seed % 2)
        assert row["caption"] == f"street {seed}".encode()
        assert row["scalars"]["year"] == 2000 + seed
    assert {row["meta"]["split"] for row in rows.values()} == {"train", "val"}


def test_a_promised_label_that_only_loading_could_miss(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "t.parquet", {"image": [jpeg(), jpeg(seed=1)], "label": [label_png(), None]})
    source = {"table": "t.parquet", "label": "label"}
    made = recipe(tmp_path / "in", source, classes=CLASSES, fields=["image", "label"])
    rows, rejected = pack_rows(made, tmp_path / "out")
    assert (list(rows), rejected) == (
        ["t/00000000"],
        {"t/00000001": ("label_missing", "promised by the recipe")},
    )


def test_a_row_group_is_read_once_for_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their keys rows jump from group to group."""
    columns = {"image": [jpeg(seed=seed) for seed in range(40)], "words": [f"street {i}" for i in range(40)]}
    parquet(tmp_path / "in" / "t.parquet", columns, row_group_size=10)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, i: int, **options: Any) -> pa.Table:
        read.append(i)
        return whole(self, i, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    made = recipe(tmp_path / "in", {"table": "t.parquet", "caption": "words"}, shard_rows=1000)
    _, dataset = packed(made, tmp_path / "out")
    assert dataset.rows() == 40
    assert sorted(read) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("image\na.jpg\n", {"image": "photo"}, r"source\.image: .*list\.csv has no column 'photo'; it has image"),
        ("image\na.jpg\n", {"scalars": {"score": "float"}}, r"source\.scalars: .* no column 'score'"),
        ("image,x\na.jpg\n", {}, "line 2: not the 2 cells"),
        ('image\n"a.jpg\n', {}, "after line 1: unexpected end"),
        ("image\na.jpg\n", {"table": "other.csv"}, "no file below .* matches other.csv"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, source: dict[str, Any], message: str) -> None:
    root = write_files(tmp_path / "in", {"list.csv": text.encode(), "a.jpg": jpeg()})
    with pytest.raises(UserError, match=message):
        make_plan(recipe(root, {"table": "list.csv", **source}), tmp_path / "out")


@pytest.mark.parametrize("name", ["split", "Weather Code", "image.offset"])
def test_names_that_no_scalar_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"choose another name|cannot name a scalar"):
        recipe(tmp_path, {"scalars": {name: "str"}})


def test_a_parquet_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in" / "t.parquet"
    parquet(path, {"image": [jpeg()]})
    plan = make_plan(recipe(tmp_path / "in", {"table": "t.parquet"}), tmp_path / "out")
    parquet(path, {"image": [jpeg(), jpeg(seed=1)]})
    with pytest.raises(UserError, match="no longer has"):
        pack_shard(plan, 0, plan.path(0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="fetch it again"):
        packed(recipe(tmp_path / "in", {"table": "t.parquet"}), tmp_path / "out2")


def test_names_in_any_encoding(tmp_path: Path) -> None:
    names = [b"latin\xe9.jpg", "Çağlar — 東京.jpg".encode(), b"quo'te.jpg", b"new\nline.jpg", b"v1.2.jpg"]
    root = tmp_path / "in"
    root.mkdir()
    for number, name in enumerate(names):
        (root / os.fsdecode(name)).write_bytes(jpeg(seed=number))
    lines = b"".join(b'"' + name + b'",caf\xe9\n' for name in names)
    (root / "list.csv").write_bytes(b"\xef\xbb\xbfimage,from\n" + lines)
    rows, rejected = pack_rows(recipe(root, {"origin": "from"}), tmp_path / "out")
    assert rejected == {}
    assert {name: row["image"] for name, row in rows.items()} == {
        to_text(name): jpeg(seed=number) for number, name in enumerate(names)
    }
    assert {row["scalars"]["origin"] for row in rows.values()} == {"caf\\udce9"}
