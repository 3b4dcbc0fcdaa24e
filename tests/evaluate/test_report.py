"""The page holds what it must, escapes what came from outside, asks nobody for anything, and bears missing pieces."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, column_folder, merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.shard import Head, ShardWriter
from semiocity.errors import UserError
from semiocity.evaluate import generate, score
from semiocity.evaluate.options import EvaluateJob, GenerateJob
from semiocity.evaluate.report import contact_sheet, write
from semiocity.files import canonical
from semiocity.stages import masks

HOSTILE = '</p><script>alert("x")</script><img src="https://evil.example/a.png" onerror=alert(1)> & {{ 7 * 7 }}'
ATTEMPTS = ("train", "generate")


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self, alt: str) -> list[np.ndarray]:
        """Decoded pictures whose alternative text begins with `alt`."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img" and (attributes["alt"] or "").startswith(alt):
                data = (attributes["src"] or "").partition("base64,")[2]
                found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")))
        return found


def _add_column(dataset: Path, column: str, field: str, ext: str, make: Any) -> None:
    """A column as a stage leaves it; `make(row)` gives the payload, None makes a tombstone."""
    data = Dataset.open(dataset)
    base = data.columns["base"]
    folder = column_folder(dataset, column, "0123456789")
    for shard, entry in enumerate(data.shard_entries("base")):
        head = Head(
            column,
            "0123456789",
            shard,
            {"base": {"revision": base.revision, "sha256": entry["sha256"]}},
            {"name": column, "version": 1, "args": {}},
            None,
            {"device": "cpu", "dtype": "float32", "batch": 1},
            {field: ext},
        )
        reader = data.reader("base", shard)
        with ShardWriter(ShardPath(folder, shard), head) as writer:
            for row, key in enumerate(reader.keys):
                payload = make(reader, row)
                if payload is None:
                    writer.tombstone(key, "retry", "made for a test")
                else:
                    writer.add(key, {field: (ext, payload)})
            writer.publish()
    merge(dataset, column, "0123456789")


def _halves(reader: Any, row: int) -> bytes:
    halves = np.zeros((2, 32, 32), dtype=bool)
    halves[0, :16], halves[1, 16:] = True, True
    found = masks.encode(halves)
    return canonical({"size": list(found.size), "masks": found.items}).encode()


def _hostile_caption(reader: Any, row: int) -> bytes | None:
    return None if row % 4 == 3 else f"{row} {HOSTILE}".encode()


@pytest.fixture(scope="module")
def told(packed: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with everything a report can tell, under a hostile name, and its dataset. Not to be changed."""
    root = tmp_path_factory.mktemp("told")
    city = Path(shutil.copytree(packed, root / "city"))
    _add_column(city, "caption", "text", "txt", _hostile_caption)
    _add_column(city, "mask", "rle", "mask.json", _halves)
    manifest = json.loads((city / "manifest.json").read_text())
    manifest["recipe"]["note"] = HOSTILE
    manifest["rejected"] = {"image_damaged": 3, "label_size": 1}
    manifest["files_seen"] += 4
    (city / "manifest.json").write_text(json.dumps(manifest))

    run = root / "runs" / "<i>demo & more"
    shutil.copytree(exported, run / "export")
    lines = [{"step": i, "loss": (1 / i).hex(), "lr": (1e-3).hex()} for i in range(1, 2001)]
    lines[500]["loss"] = "nan"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 2001, "lo')
    held_out = [{"step": i, "loss": (2 / i).hex()} for i in (500, 1000)]
    (run / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held_out))
    (run / "progress.json").write_text(json.dumps({"state": "done", "step": 2000, "steps": 2000}))
    for number, kind in enumerate(ATTEMPTS, start=1):
        folder = run / "attempts" / f"{number:04d}"
        (folder / "requeue").mkdir(parents=True)
        (folder / "attempt.json").write_text(json.dumps({"format": 1, "kind": kind, "job": {"remark": HOSTILE}}))
    (run / "attempts" / "0001" / "requeue" / "17.0").touch()

    job = GenerateJob(dataset=city, images_per_layout=2, steps=2, device="cpu")
    assert generate.run(job, run, city, 0, 1, lambda: False)
    segmenter = {"width": 8, "levels": 2, "steps": 5}
    score.run(EvaluateJob.model_validate({"dataset": city, "device": "cpu", "segmenter": segmenter}), run, city)
    return run, city


def test_page_shows_everything(told: tuple[Path, Path]) -> None:
    run, city = told
    page = Page(write(run, city))
    assert "<i>demo & more" in page.text
    assert "paints 2 images for each of 7 layouts" in page.text
    assert "stopped and brought back 1 time." in page.text
    assert "3" in page.text and "decoding fails, as for a truncated file" in page.text
    assert "35 images were seen: 31 packed, 4 rejected" in page.text
    scores = json.loads((run / "scores.json").read_text())
    assert f"{scores['miou']['value']:.1%}" in page.text
    assert f"{scores['frechet']['value']:.3g}" in page.text
    for name in ("sky", "road", "person", "Loss", "Validation loss", "Learning rate", "caption", "mask"):
        assert name in page.text
    for digest in (scores["samples"], scores["dataset"]["digest"], "revision 0123456789"):
        assert digest in page.text
    assert len([tag for tag, attributes in page.tags if tag == "polyline"]) == 4, "loss, its mean, validation, rate"


def test_pictures_of_the_page_are_those_of_the_run(told: tuple[Path, Path]) -> None:
    run, city = told
    page = Page(write(run, city))
    data = Dataset.open(city)
    view = data.view(["base.image", "base.label"], "val")
    real, layouts = page.pictures("real image"), page.pictures("layout")
    made, over = page.pictures("generated image"), page.pictures("masks")
    assert (len(real), len(layouts), len(made), len(over)) == (7, 7, 14, 7)
    for i in range(7):
        row = view.read(i)
        assert np.array_equal(real[i], np.asarray(Image.open(io.BytesIO(row["base.image"])).convert("RGB")))
        ids = np.asarray(Image.open(io.BytesIO(row["base.label"])))
        assert np.array_equal(layouts[i], np.array(data.palette, dtype=np.uint8)[ids])
        for number in range(2):
            file = run / "samples" / view.key(i) / f"{number:02d}.png"
            assert np.array_equal(made[2 * i + number], np.asarray(Image.open(file)))
    edge = over[0].shape[0] // 2
    assert (over[0][edge] > 240).all(), "the outline between the two masks"
    assert not np.array_equal(over[0][: edge // 2].mean(axis=(0, 1)), over[0][-edge // 2 :].mean(axis=(0, 1)))


def test_what_came_from_outside_is_text(told: tuple[Path, Path]) -> None:
    page = Page(write(*told))
    assert page.text.count(HOSTILE) >= 5 + 1, "captions and the dataset's note are shown as they are"
    assert "No caption." in page.text, "the caption of one held-out row failed"
    assert not [tag for tag, _ in page.tags if tag in ("script", "i:", "iframe", "object", "embed", "form")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_page_asks_nobody_for_anything(told: tuple[Path, Path]) -> None:
    page = Page(write(*told))
    assert not [tag for tag, _ in page.tags if tag in ("link", "base", "script")]
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")  # type: ignore[union-attr]
    styles = "".join(re.findall(r"<style>.*?</style>", page.source, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_same_run_gives_the_same_page(told: tuple[Path, Path]) -> None:
    assert write(*told).read_bytes() == write(*told).read_bytes()


def test_fewer_rows_are_shown_and_counted(told: tuple[Path, Path]) -> None:
    page = Page(write(*told, rows=2))
    assert len(page.pictures("real image")) == 2
    assert "2 of 7 layouts" in page.text


def test_missing_pieces_are_said(packed: Path, tmp_path: Path) -> None:
    page = Page(write(tmp_path, packed))
    for text in ("No scores yet", "No generated images yet", "No training in this run yet", "No caption.", "None."):
        assert text in page.text
    assert len(page.pictures("real image")) == 7
    assert not page.pictures("masks")


def test_a_dataset_without_labels_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (300, 200), (40 * i, 90, 120)).save(tmp_path / "photos" / f"<b>{i}.png")
    source = {"kind": "folder", "root": str(tmp_path / "photos"), "split_by": "fraction", "val_fraction": 0.0}
    recipe = Recipe.model_validate({"name": "photos", "source": source})
    plan = make_plan(recipe, tmp_path / "data")
    pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: False, report=lambda facts: None)
    merge(tmp_path / "data", "base", plan.revision)
    page = Page(write(tmp_path / "run", tmp_path / "data"))
    assert "This dataset has no classes." in page.text
    assert "5 of 5 rows of split train" in page.text
    pictures = page.pictures("real image")
    assert len(pictures) == 5
    assert all(max(picture.shape) <= 288 for picture in pictures), "large pictures are shrunk"


def test_damaged_pieces_count_as_missing(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("\n{")
    (tmp_path / "attempts" / "0001").mkdir(parents=True)
    (tmp_path / "attempts" / "0001" / "attempt.json").write_text("[1]")
    page = Page(write(tmp_path, packed))
    assert "No scores yet" in page.text
    assert "No training in this run yet" in page.text


def test_images_of_another_dataset_are_refused(told: tuple[Path, Path], tmp_path: Path) -> None:
    run, city = told
    shutil.copytree(run / "samples", tmp_path / "samples")
    manifest = json.loads((tmp_path / "samples" / "manifest.json").read_text())
    manifest["images"][0]["key"] = "0000000000-elsewhere"
    (tmp_path / "samples" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="images are of another dataset"):
        write(tmp_path, city)


def test_contact_sheet_is_a_grid(told: tuple[Path, Path], tmp_path: Path) -> None:
    run, city = told
    out = contact_sheet(run, city, tmp_path / "pictures" / "sheet.png", rows=3, images=4, side=64)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (3 * 70 - 6, 4 * 70 - 6, 3), "two generated images there are, and layout and real"
    assert (sheet[64:70] == 255).all()
    with pytest.raises(UserError, match="no generated images"):
        contact_sheet(tmp_path, city, out)


def test_writing_a_page_needs_no_torch(packed: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from semiocity.evaluate.report import write; "
        f"write(Path({str(tmp_path)!r}), Path({str(packed)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
