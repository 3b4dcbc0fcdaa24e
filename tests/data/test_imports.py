"""What was made elsewhere comes in under the right row, or is named as fitting none; equal input, equal column."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import encoded, folder_recipe, jpeg, packed, tree, write_files
from PIL import Image
from pycocotools import mask as coco

from semiocity.cli import main
from semiocity.data.columns import Dataset
from semiocity.data.imported_rows import Pinned, remembered
from semiocity.data.imports import job_of, pin, write_job
from semiocity.data.keys import key_of
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, merge
from semiocity.data.repair import repair
from semiocity.data.sidecars import Columns
from semiocity.data.takedown import carry_out, remains, request
from semiocity.data.verify import verify
from semiocity.errors import UserError
from semiocity.launch import jobs
from semiocity.stages.base import BadRow, make_stage
from semiocity.stages.imported_masks import gather
from semiocity.stages.runner import run_shards

NAMES = ["a/one.jpg", "a/two.jpg", "b/one.jpg", "b/naïve street, 3.jpg", "c/v1.2.jpg", "c/six.png"]


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Six pictures of 48 x 32 in three folders, and a file that is no picture and was rejected while packing."""
    pictures = {name: jpeg(seed=i) for i, name in enumerate(NAMES)}
    root = write_files(tmp_path / "pictures", {**pictures, "c/html.jpg": b"<html>"})
    packed(folder_recipe(root, shard_rows=3), tmp_path / "streets")
    return tmp_path / "streets"


def column(dataset: Path, inputs: list[Path], name: str, missing: str = "tombstone", **more: Any) -> Dataset:
    """Import to the end, in this process."""
    job = write_job(pin(dataset, inputs, **more), dataset, name, missing, "somebody")
    work = jobs.stage(job, ())
    stage = make_stage(work.job["stage"], work.job["args"])
    assert run_shards(stage, dataset, name, work.revision, range(work.shards), Owner.here())
    merge(dataset, name, work.revision)
    return Dataset.open(dataset)


def values(dataset: Dataset, field: str) -> dict[str, Any]:
    """File → value."""
    view = dataset.view(["base.meta", field])
    rows = [view.read(i) for i in range(len(view))]
    return {json.loads(row["base.meta"])["file"]: row[field] for row in rows}


def key(name: str) -> str:
    return key_of(name.rpartition(".")[0])


# ---------------------------------------------------------------- captions


def test_text_files_beside_their_pictures(streets: Path, tmp_path: Path) -> None:
    texts = {name.rpartition(".")[0] + ".txt": f"\ufeffcaption of {name}\n".encode() for name in NAMES}
    folder = write_files(tmp_path / "texts", {**texts, "a/one.jpg": b"a picture, not looked at", ".hidden.txt": b"x"})
    dataset = column(streets, [folder], "human")
    assert values(dataset, "human.text") == {name: f"caption of {name}".encode() for name in NAMES}
    assert values(dataset, "human.source")["a/two.jpg"] == b'{"inputs":["a/two.txt"]}'
    assert verify(streets) == []


def write_csv(path: Path, rows: list[tuple[str, str]], head: tuple[str, str] = ("file", "caption")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_tables_name_rows_by_key_id_path_or_last_part(streets: Path, tmp_path: Path) -> None:
    # By key, by id, by file, by the last part with and without extension, with another folder before it.
    named = [key("a/one.jpg"), "a/two", "b/one.jpg", "naïve street, 3", "elsewhere/c/v1.2.jpg", "six.webp"]
    expected = {name: f"line\n{i}".encode() for i, name in enumerate(NAMES)}
    rows = [(name, f"line\n{i}") for i, name in enumerate(named)]
    lines = "".join(json.dumps({"file": name, "text": text}) + "\n" for name, text in rows)
    (tmp_path / "c.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps([{"image": name, "prompt": text} for name, text in rows]))
    pq.write_table(pa.table({"id": named, "caption": [text for _, text in rows]}), tmp_path / "c.parquet")
    for path in (
        write_csv(tmp_path / "c.csv", rows),
        *(tmp_path / f"c.{kind}" for kind in ("jsonl", "json", "parquet")),
    ):
        dataset = column(streets, [path], path.suffix[1:])
        assert values(dataset, f"{path.suffix[1:]}.text") == expected
    view = dataset.view(["csv.short", "csv.captioner"])
    assert view.read(0)["csv.short"] == "line"
    assert view.read(0)["csv.captioner"] == "import"
    # Columns of other names are named.
    other = write_csv(tmp_path / "o.csv", rows, ("bild", "satz"))
    with pytest.raises(UserError, match=r"no column key, file.*there are bild, satz\. --key names"):
        pin(streets, [other])
    dataset = column(streets, [other], "o", columns=Columns("bild", "satz"))
    assert values(dataset, "o.text") == expected


def test_rows_without_an_input(streets: Path, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "c.csv", [("a/one.jpg", "here"), ("a/two.jpg", "  ")])
    dataset = column(streets, [path], "strict")
    assert values(dataset, "strict.text") == {"a/one.jpg": b"here"}
    assert tombstones(dataset, "strict") == {"nothing was imported for this row", "c.csv:3: the text is empty"}
    dataset = column(streets, [path], "lax", missing="none")
    found = values(dataset, "lax.text")
    assert found == {name: b"here" if name == "a/one.jpg" else None for name in NAMES if name != "a/two.jpg"}
    assert verify(streets) == []


def tombstones(dataset: Dataset, name: str) -> set[str]:
    """Reasons of a column's failed rows."""
    readers = [dataset.reader(name, shard) for shard in range(dataset.shards)]
    return {found[1] for reader in readers for i in range(len(reader)) if (found := reader.tombstoned(i)) is not None}


def test_inputs_that_fit_no_row_are_named_and_refused(streets: Path, tmp_path: Path) -> None:
    rows = [("a/one.jpg", "fits"), ("nowhere.jpg", "x"), ("c/html.jpg", "x")]
    path = write_csv(tmp_path / "c.csv", rows)
    with pytest.raises(UserError) as refused:
        pin(streets, [path])
    assert "2 inputs fit no row" in str(refused.value)
    assert "c.csv:3: no row is called nowhere.jpg" in str(refused.value)
    assert "c.csv:4: its row was rejected while packing (image_unknown)" in str(refused.value)
    assert not list((streets / "imports").iterdir()), "nothing is left of what was refused"
    report = pin(streets, [path], allow_unmatched=True)
    assert (report.matched, report.without, report.unmatched) == (1, 5, 2)
    lines = (report.folder / "unmatched.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"] for line in lines] == ["c.csv:3", "c.csv:4"]


def test_names_that_fit_several_rows_and_rows_with_two_captions(streets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"c\.csv:2: fits several rows \({key('a/one.jpg')} and {key('b/one.jpg')}\)"):
        pin(streets, [write_csv(tmp_path / "c.csv", [("one.jpg", "which?")])])
    with pytest.raises(UserError, match=rf"row {key('a/one.jpg')}: has two captions: c\.csv:2 and c\.csv:3"):
        pin(streets, [write_csv(tmp_path / "c.csv", [("a/one.jpg", "x"), (key("a/one.jpg"), "y")])])


def test_a_path_is_no_row_of_another_folder(streets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.csv:2: no row is called d/two\.jpg"):
        pin(streets, [write_csv(tmp_path / "c.csv", [("d/two.jpg", "not of a/two.jpg")])])


def test_a_name_with_a_dot_is_the_row_of_that_name(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pictures", {"v1.jpg": jpeg(), "v1.2.jpg": jpeg(seed=1)})
    packed(folder_recipe(root), tmp_path / "streets")
    path = write_csv(tmp_path / "c.csv", [("v1.2", "two"), ("v1", "one")])
    assert values(column(tmp_path / "streets", [path], "c"), "c.text") == {"v1.2.jpg": b"two", "v1.jpg": b"one"}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pictures", {"a.jpg": jpeg()})
    raw = bytes(root) + b"/stra\xdfe.jpg"
    Path(raw.decode("utf-8", "surrogateescape")).write_bytes(jpeg(seed=3))
    packed(folder_recipe(root), tmp_path / "streets")
    folder = write_files(tmp_path / "texts", {"a.txt": b"a"})
    Path((bytes(folder) + b"/stra\xdfe.txt").decode("utf-8", "surrogateescape")).write_bytes(b"no UTF-8 in the name")
    dataset = column(tmp_path / "streets", [folder], "human")
    assert sorted(values(dataset, "human.text").values()) == [b"a", b"no UTF-8 in the name"]
    assert b'{"inputs":["stra\\\\xdfe.txt"]}' in values(dataset, "human.source").values()


def test_the_same_input_is_the_same_column_wherever_it_lies(streets: Path, tmp_path: Path) -> None:
    rows = [(name, f"caption {i}") for i, name in enumerate(NAMES)]
    first = pin(streets, [write_csv(tmp_path / "c.csv", rows)])
    before = tree(first.folder)
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "c.csv", tmp_path / "moved" / "c.csv")
    again = pin(streets, [tmp_path / "moved" / "c.csv"])
    assert again.digest == first.digest
    assert {name for name, data in tree(again.folder).items() if data != before[name]} == {"import.json"}
    other = pin(streets, [write_csv(tmp_path / "c.csv", [*rows[1:], (NAMES[0], "corrected")])])
    assert other.digest != first.digest


def test_the_command_runs_it_as_an_array_job(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_csv(tmp_path / "c.csv", [(name, "x") for name in NAMES[:4]])
    assert main(["import", "streets", "--from", "c.csv", "--made-by", "a person", "--set", "run=r"]) == 0
    assert "captions for 4 rows; 2 rows without one are left out" in capsys.readouterr().out
    dataset = Dataset.open(streets)
    assert set(values(dataset, "caption.text")) == set(NAMES[:4])
    receipt = json.loads((dataset.column("caption").folder / "00000" / "00000000.json").read_text())
    assert receipt["stage"]["name"] == "import"
    assert receipt["stage"]["args"]["made_by"] == "a person"
    assert set(receipt["parents"]) == {"base"}
    assert main(["import", "streets", "--from", "c.csv", "--made-by", "a person", "--set", "run=r"]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    path.write_text("file,caption\nnowhere,x\n")
    assert main(["import", "streets", "--from", "c.csv"]) == 2
    assert "no row is called nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.csv", b"file,caption\n\xff\xfe,x\n", "utf-8"),
        ("c.csv", b'file,caption\n"a/one.jpg,x\n', "line 2: unexpected end of data"),
        ("c.csv", b"file,caption\na/one.jpg\n", "caption is None, not a text"),
        ("c.jsonl", b'{"file": "a/one.jpg", "text": "x"}\n{"file": \n', "line 2: not valid JSON"),
        ("c.jsonl", b"[1]\n", "row 1: not a row with named values"),
        ("c.json", b'{"images": []}', "neither COCO"),
        ("c.parquet", b"PAR1 not", "not readable as parquet"),
        ("c.txt", b"\xff", "not UTF-8"),
        ("c.docx", b"", "cannot be read as captions; known are txt, csv"),
    ],
)
def test_inputs_that_cannot_be_read(streets: Path, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        pin(streets, [tmp_path / name], "captions")
    assert str(refused.value).startswith(str(tmp_path / name))


def test_a_damaged_import_is_refused(streets: Path, tmp_path: Path) -> None:
    report = pin(streets, [write_csv(tmp_path / "c.csv", [("a/one.jpg", "x")])])
    assert Pinned(report.folder).get(key("a/one.jpg")) == [{"text": "x", "origin": "c.csv:2"}]
    assert Pinned(report.folder).get(key("a/two.jpg")) == []
    path = report.folder / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(UserError, match=r"rows\.jsonl: damaged"):
        Pinned(report.folder).get(key("a/one.jpg"))


def test_a_row_that_is_taken_down_leaves_the_imports_too(streets: Path, tmp_path: Path) -> None:
    rows = [(name, f"caption of {name}") for name in NAMES]
    wanted = pin(streets, [write_csv(tmp_path / "c.csv", [*rows, ("b/nobody.jpg", "x")])], allow_unmatched=True)
    gone = request(streets, [key("b/one.jpg")], "asked for it")
    assert list(remembered(streets, {item.id_sha256 for item in gone})) == [wanted.folder / "rows.jsonl"]
    carry_out(streets, gone, Owner.here())
    assert list(remains(streets)) == []
    assert not [path for path in (streets / "imports").rglob("*") if path.is_file() and b"b/one" in path.read_bytes()]
    pinned = Pinned(wanted.folder)
    assert pinned.get(key("b/one.jpg")) == []
    assert [value["text"] for name in NAMES for value in pinned.get(key(name))] == [
        t for n, t in rows if n != "b/one.jpg"
    ]
    # Its caption, imported again, fits nothing, and its name is not written down again.
    with pytest.raises(UserError, match=r"c\.csv:4: its row was taken down"):
        pin(streets, [write_csv(tmp_path / "c.csv", rows)])
    assert pin(streets, [tmp_path / "c.csv"], allow_unmatched=True).unmatched == 1
    assert list(remains(streets)) == []
    assert values(column(streets, [tmp_path / "c.csv"], "human", allow_unmatched=True), "human.text") == {
        name: text.encode() for name, text in rows if name != "b/one.jpg"
    }


def test_a_lost_shard_and_added_rows_are_made_from_what_was_imported(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command that `repair` names, also when the dataset was moved and the inputs are gone."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "texts", {"a/one.txt": b"told", "c/six.txt": b"told too"})
    assert main(["import", str(streets), "--from", "texts", "--column", "human"]) == 0
    shutil.rmtree(tmp_path / "texts")
    moved = Path(shutil.move(streets, tmp_path / "moved"))
    before = tree(moved / "columns")
    ShardPath(Dataset.open(moved).column("human").folder, 0).tar.unlink()
    (step,) = repair(moved, apply=True)
    assert step.command == f"semiocity import {moved} --again human"
    assert main(step.command.split()[1:]) == 0
    assert {n: d for n, d in tree(moved / "columns").items() if n.endswith("tar")} == {
        n: d for n, d in before.items() if n.endswith("tar")
    }
    write_files(tmp_path / "pictures", {"later.jpg": jpeg(seed=77)})
    packed(folder_recipe(tmp_path / "pictures", shard_rows=3), moved)
    assert main(["import", str(moved), "--again", "human"]) == 0
    dataset = Dataset.open(moved)
    assert dataset.shards == 4 and values(dataset, "human.text") == {"a/one.jpg": b"told", "c/six.png": b"told too"}
    assert verify(moved) == []
    with pytest.raises(UserError, match="has no imported column of this name"):
        job_of(moved, "base")


# ---------------------------------------------------------------- masks


def shapes() -> list[np.ndarray]:
    """Two masks of 48 x 32: a box, and a disc that overlaps it."""
    y, x = np.mgrid[0:32, 0:48]
    return [(x >= 5) & (x < 20) & (y >= 4) & (y < 15), (x - 24) ** 2 + (y - 16) ** 2 < 100]


def compressed(mask: np.ndarray) -> str:
    text: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return text.decode()


def runs(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat)))).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


def test_coco_in_its_three_spellings(streets: Path, tmp_path: Path) -> None:
    box, disc = shapes()
    size = {"width": 48, "height": 32}
    images = [{"id": i, "file_name": name, **size} for i, name in enumerate(NAMES[:4])]
    images[3]["width"] = 50
    spelled: list[dict[str, Any]] = [
        {"id": 1, "image_id": 0, "segmentation": {"size": [32, 48], "counts": compressed(disc)}, "category_id": 7},
        {"id": 2, "image_id": 0, "segmentation": [[5, 4, 20, 4, 20, 15, 5, 15]], "category_id": 3, "score": 0.5},
        {
            "id": 3,
            "image_id": 1,
            "segmentation": {"size": [32, 48], "counts": runs(disc)},
            "category_id": 7,
            "iscrowd": 1,
        },
        {"id": 4, "image_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]], "category_id": 3},
    ]
    categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "wheel"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": spelled, "categories": categories}))
    dataset = column(streets, [path], "mask")
    found = {name: json.loads(data) for name, data in values(dataset, "mask.rle").items()}
    assert set(found) == set(NAMES[:3])
    assert found["b/one.jpg"] == {"masks": [], "size": [32, 48]}  # listed, and nothing is on it
    first = {mask["category"]: mask for mask in found["a/one.jpg"]["masks"]}
    for mask, name in ((box, "car"), (disc, "wheel")):
        decoded = coco.decode({"size": [32, 48], "counts": first[name]["counts"]})
        assert (decoded == mask).all()
        assert first[name]["area"] == mask.sum()
    assert first["car"]["bbox"] == [5, 4, 15, 11]
    assert first["car"]["score"] == 0.5
    assert found["a/two.jpg"]["masks"][0]["iscrowd"] == 1
    assert found["a/two.jpg"]["masks"][0]["counts"] == compressed(disc)
    reasons = tombstones(dataset, "mask")
    assert "instances.json:3: masks are 50x32, the picture is 48x32" in reasons


def test_our_own_masks_go_out_and_come_back(city: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(city, tmp_path / "town"))
    view = Dataset.open(own).view(["mask.rle"])
    lines = [{"key": view.key(i), **json.loads(view.read(i)["mask.rle"])} for i in range(len(view))]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = column(own, [tmp_path / "m.jsonl"], "again")
    both = dataset.view(["mask.rle", "again.rle", "mask.coverage", "again.coverage"])
    assert len(both) == len(view)
    for i in range(len(both)):
        row = both.read(i)
        assert row["mask.rle"] == row["again.rle"]
        assert row["mask.coverage"] == row["again.coverage"]


def test_png_masks(streets: Path, tmp_path: Path) -> None:
    box, disc = shapes()
    ids = np.zeros((32, 48), np.uint16)
    ids[disc] = 700
    ids[box] = 2
    colors = np.zeros((32, 48, 3), np.uint8)
    colors[box] = (0, 130, 180)
    files = {
        "a/one.png": encoded(Image.fromarray(ids), "PNG"),
        "a/two.png": encoded(Image.fromarray(colors), "PNG"),
        "b/one/0.png": encoded(Image.fromarray(box.astype(np.uint8) * 255), "PNG"),
        "b/one/1.png": encoded(Image.fromarray(disc.astype(np.uint8) * 255), "PNG"),
        "c/v1.2.png": encoded(Image.fromarray(ids[:, ::2].copy()), "PNG"),
        "c/six.png": b"\x89PNG\r\n\x1a\n broken",
    }
    folder = write_files(tmp_path / "masks", files)
    dataset = column(streets, [folder], "mask")
    found = {
        name: {str(mask.get("id", mask.get("color"))): mask for mask in json.loads(data)["masks"]}
        for name, data in values(dataset, "mask.rle").items()
    }
    assert found["a/one.jpg"]["2"]["counts"] == compressed(box)
    assert found["a/one.jpg"]["700"]["counts"] == compressed(disc & ~box)
    assert found["a/two.jpg"]["[0, 130, 180]"]["counts"] == compressed(box)
    counts = {mask["counts"] for mask in json.loads(values(dataset, "mask.rle")["b/one.jpg"])["masks"]}
    assert counts == {compressed(box), compressed(disc)}
    reasons = tombstones(dataset, "mask")
    assert "c/v1.2.png: masks are 24x32, the picture is 48x32" in reasons
    assert "c/six.png: cannot be decoded" in reasons
    # What was pinned and has changed since is refused.
    write_files(folder, {"a/one.png": encoded(Image.fromarray(ids[::-1].copy()), "PNG")})
    shutil.rmtree(streets / "columns" / "mask")
    job = write_job(pin_again(streets), streets, "mask", "tombstone", "")
    stage = make_stage("import", jobs.stage(job, ()).job["args"])
    stage.load(None, "cpu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a/one\.png has changed since it was imported"):
        gather(stage.pinned.get(key("a/one.jpg")), (32, 48), stage.pinned.roots)  # type: ignore[attr-defined]


def pin_again(dataset: Path) -> Any:
    """The report of the one import that is there, without reading the inputs anew."""
    from semiocity.data.imports import Report

    (folder,) = (dataset / "imports").iterdir()
    return Report(folder, folder.name, "masks", 0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("99999999", "pixels, the picture has 1536"),
        ("\x7f\x00", "cannot be there"),
        ("P", "pixels, the picture has 1536"),
        ([1536, 1], "run-lengths of 1537 pixels"),
        ([2000, -464], "run-lengths of 1536 pixels"),
        ([["a"] * 6], "cannot be read"),
        ([[1, 2, 3, 4]], None),
    ],
)
def test_damaged_run_lengths_never_reach_the_decoder(shape: Any, words: str | None) -> None:
    value = {"size": [32, 48], "masks": [{"shape": shape}], "origin": "m.json:1"}
    if words is None:
        assert gather([value], (32, 48), []).items == []
        return
    with pytest.raises(BadRow, match=words):
        gather([value], (32, 48), [])
