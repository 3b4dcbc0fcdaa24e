"""The source `webdataset`: tars written by others, whole or damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from make_images import CLASSES, dice, jpeg, label_png, pack_rows, png, write_files

from semiocity.data.pack import pack_shard
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.sources.files import open_below
from semiocity.data.sources.tars import Damage, Member, members
from semiocity.errors import UserError


def recipe(root: Path, source: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    source = {"kind": "webdataset", "root": str(root), **(source or {})}
    return Recipe.model_validate({"name": "w", "source": source, "shard_rows": 5, **changes})


def tar_of(files: dict[str, bytes], **options: Any) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", encoding="utf-8", errors="surrogateescape", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5  # a pax header before each member, as webdataset 0.2 writes them
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def sample(number: int) -> dict[str, bytes]:
    facts = {"url": f"http://x/{number}", "similarity": number / 10, "caption": f"street {number}", "status": "success"}
    return {
        f"{number:09d}.jpg": jpeg(seed=number),
        f"{number:09d}.json": json.dumps(facts).encode(),
        f"{number:09d}.txt": f"street {number}".encode(),
    }


def test_shards_of_the_library_webdataset(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / "in" / f"{shard:05d}.tar")) as sink:
            for i in range(3):
                sink.write({"__key__": f"s{i}", "jpg": jpeg(seed=10 * shard + i), "json": {"n": i}, "cls": 3})
    rows, rejected = pack_rows(recipe(tmp_path / "in", {"scalars": {"n": "int"}}), tmp_path / "out")
    assert rejected == {}
    assert sorted(rows) == [f"0000{shard}/s{i}" for shard in range(2) for i in range(3)], "keys repeat from tar to tar"
    assert rows["00001/s2"]["image"] == jpeg(seed=12)
    assert rows["00001/s2"]["scalars"]["n"] == 2
    assert rows["00001/s2"]["scalars"]["origin"] == "00001/s2"


def test_what_img2dataset_writes(tmp_path: Path) -> None:
    files = {name: data for i in range(4) for name, data in sample(i).items()}
    del files["000000003.txt"]
    root = write_files(tmp_path / "in", {"00000.tar": tar_of(files), "00000_stats.json": b"{}", "00000.parquet": b"x"})
    source = {
        "scalars": {"similarity": "float"},
        "origin_key": "url",
        "caption_key": "caption",
        "val_fraction": 0.5,
    }
    rows, rejected = pack_rows(recipe(root, source), tmp_path / "out")
    assert (rejected, len(rows)) == ({}, 4)
    for i in range(4):
        row = rows[f"00000/{i:09d}"]
        assert (row["image"], row["caption"]) == (jpeg(seed=i), f"street {i}".encode())
        assert (row["scalars"]["similarity"], row["scalars"]["origin"]) == (i / 10, f"http://x/{i}")


def test_names_are_repaired(tmp_path: Path) -> None:
    long = "deep/" * 30 + "a picture with a name longer than a USTAR header holds, Çağlar"
    files = {
        "./v1.2.jpg": jpeg(seed=1),
        "./v1.2.txt": b"dots in the key",
        "v1.3.JPG": jpeg(seed=2),
        "plain.jpg": jpeg(seed=3),
        "other.txt": b"no picture of this key",
        "plain.label.png": label_png(),
        "plain.depth.png": png(),
        "plain.thumb.jpg": jpeg(seed=5),
        "far.jpg": jpeg(seed=4),
        long + ".jpg": jpeg(seed=6),
        "latin\udce9.jpg": jpeg(seed=7),
        "plain.txt": b"not beside its picture",
        "readme": b"nothing",
        "._plain.jpg": b"what another system left",
        "far.png": png(),
    }
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        root = write_files(tmp_path / f"in{number}", {"sub/x.tar": tar_of(files, format=form)})
        rows, rejected = pack_rows(recipe(root, {"ignore": ["depth.png"]}, classes=CLASSES), tmp_path / f"out{number}")
        assert {name.removeprefix("sub/x/"): row["image"] for name, row in rows.items()} == {
            "v1.2": jpeg(seed=1),
            "v1.3": jpeg(seed=2),
            "plain": jpeg(seed=3),
            "far": jpeg(seed=4),
            long: jpeg(seed=6),
            "latin\udce9": jpeg(seed=7),
        }
        assert rows["sub/x/v1.2"]["caption"] == b"dots in the key"
        assert rows["sub/x/plain"]["caption"] == b"not beside its picture"
        assert rows["sub/x/plain"]["label"] is not None
        assert {name: reason for name, (reason, _) in rejected.items()} == {
            "sub/x.tar/plain.thumb.jpg": "duplicate_id",
            "sub/x.tar/far.png": "duplicate_id",
            "sub/x.tar/other": "image_missing",
        }


def damaged(kind: str, whole: bytes, header: int) -> bytes:
    match kind:
        case "cut on a border":
            return whole[:header]
        case "cut in a header":
            return whole[: header + 100]
        case "cut in a member":
            return whole[: header + 700]
        case _:
            data = bytearray(whole)
            data[header + 130] ^= 1  # in the size
            return bytes(data)


@pytest.mark.parametrize("kind", ["cut on a border", "cut in a header", "cut in a member", "flipped bit in a header"])
def test_damaged_tars_are_named_with_the_place(tmp_path: Path, kind: str) -> None:
    files = {name: data for i in range(4) for name, data in sample(i).items()}
    whole = tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        third = tar.getmembers()[6].offset_data - 512  # the header where the third sample begins
    root = write_files(tmp_path / "in", {"a.tar": damaged(kind, whole, third), "b.tar": tar_of(sample(7))})
    rows, rejected = pack_rows(recipe(root), tmp_path / "out")
    # The sample just before a cut may have lost members: nobody can tell, so it is not packed.
    assert sorted(rows) == ["a/000000000", "b/000000007"]
    reason, detail = rejected["a.tar"]
    assert reason == "tar_damaged"
    assert f"a.tar, byte {third}" in detail
    assert "000000001, the sample before it" in detail


def test_every_cut_is_found(tmp_path: Path) -> None:
    random = dice()
    whole = tar_of({name: data for i in range(3) for name, data in sample(i).items()})
    end = len(whole.rstrip(b"\0"))
    path = tmp_path / "x.tar"
    for cut in [0, 512, *(random.randrange(end) for _ in range(60))]:
        path.write_bytes(whole[:cut])
        found = list(_members(tmp_path))
        assert isinstance(found[-1], Damage), f"cut at {cut}"
        for member in found[:-1]:
            assert isinstance(member, Member) and member.offset + member.size <= cut
    for _ in range(60):
        flipped = bytearray(whole)
        header = 512 * random.choice([0, _second_header(whole)])
        # Not in the checksum: a space for a zero there means the same.
        flipped[header + random.choice([*range(148), *range(156, 500)])] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        assert isinstance(list(_members(tmp_path))[-1], Damage)


def _second_header(whole: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        return tar.getmembers()[1].offset // 512


def _members(root: Path) -> list[Member | Damage]:
    descriptor = open_below(root, "x.tar")
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        return list(members(file.fileno()))


def test_links_and_json_that_is_none(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, data in {"b.jpg": jpeg(), "b.json": b"{", "c.jpg": jpeg(), "c.json": b'{"n": "many"}'}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    root = write_files(tmp_path / "in", {"x.tar": sink.getvalue(), "y.tar": tar_of({"d.jpg": jpeg()})})
    rows, rejected = pack_rows(recipe(root, {"scalars": {"n": "int"}}), tmp_path / "out")
    assert list(rows) == ["y/d"]
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "x.tar/a.jpg": "not_a_file",
        "x/b": "scalar_value",
        "x/c": "scalar_value",
    }


def test_splits_by_folder(tmp_path: Path) -> None:
    root = write_files(
        tmp_path / "in", {f"{split}/0.tar": tar_of({"a.jpg": jpeg()}) for split in ("training", "validation", "odd")}
    )
    source = {"split_by": "folder", "splits": {"odd": "test"}}
    rows, _ = pack_rows(recipe(root, source), tmp_path / "out")
    assert {row["meta"]["split"] for row in rows.values()} == {"train", "val", "test"}


def test_a_tar_that_changed_or_is_packed_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"x.tar": tar_of({"a.jpg": jpeg()})})
    plan = make_plan(recipe(root), tmp_path / "out")
    write_files(root, {"x.tar": tar_of({"a.jpg": jpeg(), "b.jpg": jpeg(300, 300)})})
    with pytest.raises(UserError, match=r"x\.tar no longer has"):
        pack_shard(plan, 0, plan.path(0))
    write_files(root, {"y.tar.gz": b""})
    with pytest.raises(UserError, match=r"y\.tar\.gz: compressed as a whole"):
        make_plan(recipe(root), tmp_path / "out2")
    with pytest.raises(UserError, match=r"no \*\.tar below"):
        make_plan(recipe(tmp_path / "out"), tmp_path / "out2")
