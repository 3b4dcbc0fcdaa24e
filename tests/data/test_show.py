"""One row and its columns: what is there, what made it, and from what."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from make_images import add_column, folder_recipe, jpeg, packed, png, write_files

from semiocity.cli import main
from semiocity.data import show
from semiocity.data.columns import Dataset
from semiocity.data.find import find
from semiocity.data.manifest import column_folder
from semiocity.data.provenance import columns, healthy, use
from semiocity.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders, packed in two goes, so that keys ascend in two runs of shards; with a column."""
    root = tmp_path_factory.mktemp("in")
    files = {f"{place}/{number}.v1.jpg": jpeg(seed=number) for place in ("aachen", "bonn") for number in range(10)}
    write_files(root, files)
    dataset = root.parent / "pictures"
    packed(folder_recipe(root, shard_rows=3), dataset)
    write_files(root, {f"köln/{number}.png": png(seed=50 + number) for number in range(4)})
    packed(folder_recipe(root, shard_rows=3), dataset)
    add_column(dataset)
    return dataset


def metas(dataset: Path) -> dict[str, tuple[str, int, int]]:
    """Original file → (key, shard, row)."""
    data = Dataset.open(dataset)
    return {
        json.loads(data.reader("base", shard).read(row, "meta") or b"")["file"]: (key, shard, row)
        for shard in range(data.shards)
        for row, key in enumerate(data.reader("base", shard).keys)
    }


def test_a_row_is_found_by_every_name_that_it_has(pictures: Path) -> None:
    data, known = Dataset.open(pictures), metas(pictures)
    assert len(known) == 24
    for file, place in known.items():
        key = place[0]
        stem = file.rsplit(".", 1)[0]
        for name in (key, key[:10], key[:12], file, stem):
            assert tuple(find(data, name)) == place, name
    assert tuple(find(data, "2.png")) == known["köln/2.png"], "its file name alone, where no other row has it"
    assert tuple(find(data, "köln/2")) == known["köln/2.png"]


def test_a_name_of_several_rows_lists_them(pictures: Path) -> None:
    data, known = Dataset.open(pictures), metas(pictures)
    with pytest.raises(UserError, match="fits 2 rows") as caught:
        find(data, "3.v1.jpg")
    for file in ("aachen/3.v1.jpg", "bonn/3.v1.jpg"):
        assert known[file][0] in str(caught.value)
    for name in ("nothing", "0000000000-nothing", "aachen", "", "/", "../x"):
        with pytest.raises(UserError, match="no row"):
            find(data, name)


def test_few_indexes_are_opened_to_find_a_key(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semiocity.data import find as module

    opened: list[int] = []
    whole = module.read_index

    def read(dataset: Dataset, column: str, shard: int, names: list[str]) -> Any:
        opened.append(shard)
        return whole(dataset, column, shard, names)

    monkeypatch.setattr(module, "read_index", read)
    for key, shard, _ in metas(pictures).values():
        opened.clear()
        find(Dataset.open(pictures), key)
        assert shard in opened and len(opened) <= 4, "two runs, and a neighbour of each"


def test_what_is_shown_of_a_row(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, shard, _ = metas(pictures)["bonn/4.v1.jpg"]
    assert main(["show", str(pictures), key[:10], "--json", "--save", str(tmp_path / "saved")]) == 0
    facts = json.loads(capsys.readouterr().out)
    data = jpeg(seed=4)
    image = facts["columns"]["base"]["fields"]["image"]
    assert image == {
        "type": "jpg",
        "bytes": len(data),
        "crc32": f"{zlib.crc32(data):08x}",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert json.loads(facts["columns"]["base"]["fields"]["meta"]["text"])["file"] == "bonn/4.v1.jpg"
    assert facts["columns"]["base"]["scalars"]["width"] == 48
    word = facts["columns"]["word"]
    opened = Dataset.open(pictures)
    assert word["fields"]["text"]["text"] == key and word["scalars"] == {"letters": len(key)}
    assert (word["stage"], word["model"]) == ({"name": "word", "version": 1, "args": {}}, None)
    assert word["execution"] == {"device": "cpu", "dtype": "float32", "batch": 1}
    assert word["parents"]["base"]["revision"] == opened.column("base").revision
    assert word["parents"]["base"]["sha256"] == opened.shard_entries("base")[shard]["sha256"]
    assert word["parents"]["base"]["fields"]["base.image"] == {"sha256": image["sha256"], "crc32": image["crc32"]}
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}.items() >= {
        (f"{key}.base.image.jpg", data),
        (f"{key}.word.text.txt", key.encode()),
    }


def test_only_what_a_stage_reads_counts_as_its_origin(pictures: Path) -> None:
    facts = show.describe(pictures, "bonn/4.v1.jpg", reads=lambda stage: ["base.image"])
    assert list(facts["columns"]["word"]["parents"]["base"]["fields"]) == ["base.image"]


def test_a_row_that_failed_and_one_that_is_damaged(own_town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset.open(own_town)
    key = data.reader("word", 1).keys[2]
    assert main(["show", str(own_town), key]) == 0
    assert "FAILED (permanent): cannot be read" in capsys.readouterr().out
    tar = data.column("base").folder / "00000" / "00000001.tar"
    spoilt = bytearray(tar.read_bytes())
    offset = data.reader("base", 1).column("image.offset")[2]
    spoilt[offset + 10] ^= 1
    tar.write_bytes(spoilt)
    assert main(["show", str(own_town), key]) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_columns_say_what_made_them_and_what_is_out_of_date(own_town: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_column(own_town, revision="bbbbbbbbbb")
    (own_town / "columns" / "word" / "cccccccccc" / "00000").mkdir(parents=True)
    facts = columns(own_town)
    word = next(column for column in facts["columns"] if column["column"] == "word")
    states = {item["revision"]: (item["current"], item["merged"]) for item in word["revisions"]}
    assert states == {"aaaaaaaaaa": (False, True), "bbbbbbbbbb": (True, True), "cccccccccc": (False, False)}
    assert healthy(facts)
    assert main(["columns", str(own_town)]) == 0
    shown = capsys.readouterr().out
    assert "bbbbbbbbbb  current  20 rows in 4 shards" in shown and "not merged" in shown and "letters (int)" in shown

    assert main(["columns", str(own_town), "--use", "word=aaaaaaaaaa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["columns"][1]["current"] == "aaaaaaaaaa"
    assert Dataset.open(own_town).column("word").tombstones["permanent"] == 1
    for wanted, message in (("word=cccccccccc", "no revision cccccccccc that was merged"), ("word", "COLUMN=REVISION")):
        assert main(["columns", str(own_town), "--use", wanted]) == 2
        assert message in capsys.readouterr().err


def test_a_column_of_another_base_says_why_it_is_not_offered(
    own_town: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from make_images import city_recipe

    plan, _ = packed(city_recipe(source={"train": 15}), own_town)
    assert main(["columns", str(own_town)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"out of date: made from base {_other(own_town, plan.revision)}, which is now {plan.revision}" in shown
    with pytest.raises(UserError, match="Run its job again"):
        use(own_town, "word", "aaaaaaaaaa")
    use(own_town, "base", _other(own_town, plan.revision))
    assert healthy(columns(own_town)), "the base that it was made from is back"


def _other(dataset: Path, revision: str) -> str:
    return next(path.name for path in column_folder(dataset, "base", "x").parent.iterdir() if _is(path, revision))


def _is(path: Path, revision: str) -> bool:
    return path.is_dir() and path.name != revision


def test_control_characters_are_shown_escaped() -> None:
    facts: dict[str, Any] = {
        "type": "txt",
        "bytes": 5,
        "crc32": "0",
        "sha256": "0",
        "text": "\x1b[31mred\nblue",
        "cut": False,
    }
    column = {
        "revision": "r",
        "stage": {"name": "x", "version": 1, "args": {"prompt": "a\x07"}},
        "model": None,
        "execution": {},
        "parents": {},
        "tombstone": None,
        "fields": {"text": facts},
        "scalars": {"more": "\x9b"},
    }
    shown = show.render({"key": "k", "dataset": "d", "shard": 0, "row": 0, "columns": {"caption": column}, "stale": {}})
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert "\\x1b[31mred" in shown and "    blue" in shown
