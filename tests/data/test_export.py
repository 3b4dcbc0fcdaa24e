"""Which rows go out; a broken export goes on where it broke; what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from exported import members, ours, state
from make_images import add_column, dice

from semiocity.cli import main
from semiocity.data import view_build
from semiocity.data.columns import Dataset
from semiocity.data.export import engine, parts
from semiocity.data.export.engine import FORMATS, export
from semiocity.data.export.selection import Rows
from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardError
from semiocity.data.views import ViewJob, plan_view
from semiocity.errors import UserError

# ---------------------------------------------------------------- which rows


@pytest.mark.parametrize("to", ["parquet", "webshart", "coco"])
def test_a_filter_chooses_rows(to: str, full: Dataset, tmp_path: Path) -> None:
    texts = {key: row["caption.text"].decode() for key, row in ours(full, "caption.text").items()}
    wanted = {key for key, text in texts.items() if "car" in text}
    assert 0 < len(wanted) < len(texts)
    rows = Rows(filter='"car" in caption.text')
    manifest = export(full.path, to, tmp_path / "out", ["base.image", "base.label"], rows)
    assert manifest["filter"] == rows.filter
    assert (manifest["rows_total"], manifest["left_out"]["rows"]) == (len(wanted), len(texts) - len(wanted))
    found = {
        "parquet": lambda: [key for p in tmp_path.rglob("*.parquet") for key in pq.read_table(p)["key"].to_pylist()],
        "webshart": lambda: [
            item["path"].partition(".")[0]
            for path in tmp_path.rglob("0*.json")
            if ".export" not in path.parts
            for item in json.loads(path.read_text())["files"]
        ],
        "coco": lambda: [path.stem for path in tmp_path.rglob("*.png")],
    }
    assert set(found[to]()) == wanted


def test_a_saved_view_brings_its_rows_columns_and_splits(own_city: Path, tmp_path: Path) -> None:
    wish = {"dataset": own_city, "fields": ["base.image", "caption.text"], "filter": 'base.time == "night"'}
    plan = plan_view(ViewJob.model_validate(wish), "night", "night")
    assert view_build.build(plan, range(plan.shards))
    view_build.merge(plan)
    before = Dataset.open(own_city)
    times = {key: row["base.time"] for key, row in ours(before, "base.time").items()}
    night = {key for key, time in times.items() if time == "night"}
    assert 0 < len(night) < len(times)
    manifest = export(own_city, "webdataset", tmp_path / "out", rows=Rows(view="night"))
    assert manifest["view"] == "night"
    assert manifest["rows_total"] == len(night)
    keys = {name.partition(".")[0] for path in (tmp_path / "out").rglob("*.tar") for name in members(path)}
    assert keys == night
    with pytest.raises(UserError, match="give one of the two"):
        export(own_city, "webdataset", tmp_path / "no", rows=Rows(view="night", filter="width > 1"))


# ---------------------------------------------------------------- going on, and refusing


@pytest.mark.parametrize("to", FORMATS)
def test_a_broken_export_goes_on_and_ends_as_if_undisturbed(
    to: str, city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ["base.image", "caption.text"]
    export(city, to, tmp_path / "whole", fields)
    random = dice()
    steps = random.sample(range(1, 40), 4)
    out = tmp_path / "out"
    real_rename, real_write = Path.rename, engine.write_json
    left = [0]

    def step(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    def rename(self: Path, target: Path) -> Path:
        step()
        return real_rename(self, target)

    def write_json(path: Path, value: Any) -> None:
        step()
        real_write(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        patched.setattr(engine, "write_json", write_json)
        patched.setattr(parts, "write_json", write_json)
        for number in sorted(steps):
            left[0] = number
            try:
                export(city, to, out, fields)
            except KeyboardInterrupt:
                assert not (out / "semiocity.json").exists()
            else:
                break
    export(city, to, out, fields)
    assert state(out) == state(tmp_path / "whole")
    assert not (out / ".export" / "work").exists()


def test_what_is_there_is_kept_and_what_changed_is_made_again(own_city: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields = ["base.image", "word.text"]
    export(own_city, "imagefolder", out, fields)
    before = {path: path.stat().st_ino for path in out.glob("*/0*/*.png")}
    dead = Dataset.open(own_city).reader("base", 1).keys[2]
    reports: list[tuple[int, int]] = []
    export(own_city, "imagefolder", out, fields, report=lambda *facts: reports.append(facts))
    assert reports == [(4, 4)]
    assert {path: path.stat().st_ino for path in out.glob("*/0*/*.png")} == before
    # The row that had failed comes back in a new revision of the column: its shard and no other is exported again.
    add_column(own_city, failing=(), revision="bbbbbbbbbb")
    manifest = export(own_city, "imagefolder", out, fields)
    after = {path: path.stat().st_ino for path in out.glob("*/0*/*.png")}
    assert set(after) - set(before) == {next(path for path in after if path.stem == dead)}
    assert manifest["rows_total"] == 20
    export(own_city, "imagefolder", tmp_path / "fresh", fields)
    assert state(out) == state(tmp_path / "fresh")


def test_a_file_that_was_lost_is_made_again(city: Path, tmp_path: Path) -> None:
    for to, lost in (("parquet", "data/train-00001-of-00004.parquet"), ("coco", "images/train/00000002")):
        out = tmp_path / to
        export(city, to, out, ["base.image", "base.label"])
        whole = state(out)
        if (out / lost).is_dir():
            next((out / lost).iterdir()).unlink()
        else:
            (out / lost).unlink()
        export(city, to, out, ["base.image", "base.label"])
        assert state(out) == whole


def test_several_processes_give_the_same_bytes(city: Path, tmp_path: Path) -> None:
    export(city, "coco", tmp_path / "one")
    export(city, "coco", tmp_path / "two", workers=2)
    assert state(tmp_path / "one") == state(tmp_path / "two")


def test_a_damaged_shard_is_named_and_nothing_of_it_is_exported(own_city: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(own_city)
    path = ShardPath(dataset.column("base").folder, 1).tar
    reader = dataset.reader("base", 1)
    place = reader.column("image.offset")[0]
    data = bytearray(path.read_bytes())
    data[place + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"image of {reader.keys[0]} is damaged"):
        export(own_city, "parquet", tmp_path / "out")
    there = {path.name[-22:-17] for path in (tmp_path / "out" / "data").iterdir()}
    assert there == {"00000"}
    assert not (tmp_path / "out" / "semiocity.json").exists()


def test_refusals(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export(city, "parquet", out, ["base.image"])
    for more in (["--fields", "base.image", "base.label"], ["--fields", "base.image", "--split", "val"]):
        assert main(["export", str(city), "--to", "parquet", "--out", str(out), *more]) == 2
        assert "holds another export" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious").touch()
    for arguments, words in (
        (["--to", "tfrecord", "--out", str(tmp_path / "x")], "no such format; one of parquet"),
        (["--to", "parquet", "--out", str(foreign)], "not empty, and not an export"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--fields", "base.imge"], "has no field imge"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--fields", "image=base.label", "base.image"], "is taken"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--link"], "--link has no effect"),
        (["--to", "parquet", "--out", str(tmp_path / "x"), "--split", "test"], "no split test"),
        (
            ["--to", "imagefolder", "--out", str(tmp_path / "x"), "--fields", "caption.text"],
            "needs the field base.image",
        ),
        (
            ["--to", "imagefolder", "--out", str(tmp_path / "x"), "--fields", "base.image", "base.label"],
            "--conditioning",
        ),
    ):
        assert main(["export", str(city), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert [path.name for path in foreign.iterdir()] == ["precious"]


def test_the_command_prints_what_it_made(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(city), "--to", "parquet", "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "semiocity.json").read_text())
    shutil.rmtree(tmp_path / "out" / ".export")
    assert main(command) == 2  # without its records it is a folder like any other
