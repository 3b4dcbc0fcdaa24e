"""The writer publishes all or nothing; the reader gives the same bytes back or says what is damaged."""

from __future__ import annotations

import pickle
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from make_images import dice, tree

from semiocity.data.keys import key_of
from semiocity.data.shard import Head, ShardError, ShardPath, ShardReader, ShardWriter, read_receipt, sha256_file

HEAD = Head(
    column="things",
    revision="0123456789",
    shard=7,
    parents={"base": {"revision": "ffffffffff", "sha256": "00"}},
    stage={"name": "thing", "version": 3, "args": {"b": 1, "a": [2]}},
    model=None,
    execution={"device": "cpu", "dtype": "float32", "batch": 8},
    fields={"picture": "jpg|png", "text": "txt"},
    scalars={"score": "float", "count": "int", "note": "str", "good": "bool", "split": "str", "share.road": "float"},
)
KEYS = sorted(key_of(f"row {i}") for i in range(12))


def write(path: ShardPath, head: Head = HEAD, payload: bytes = b"picture") -> dict[str, object]:
    with ShardWriter(path, head) as writer:
        for i, key in enumerate(KEYS):
            if i == 5:
                writer.tombstone(key, "retry", 'out of "memory"\nä', {"split": "val"})
                continue
            fields = {"picture": ("png" if i % 2 else "jpg", payload * i)}
            if i % 3:
                fields["text"] = ("txt", f"row {i}".encode())
            writer.add(key, fields, {"score": i / 3, "count": i, "good": i % 2 == 0, "split": "train"})
        writer.reject("a/b\udcff.jpg", "image_empty", "zero bytes")
        return writer.publish()


@pytest.fixture
def path(tmp_path: Path) -> ShardPath:
    return ShardPath(tmp_path / "things" / "0123456789", 7)


def test_what_was_written_is_read(path: ShardPath) -> None:
    receipt = write(path)
    assert read_receipt(path) == receipt
    with ShardReader(path) as reader:
        assert reader.keys == KEYS
        assert len(reader) == receipt["rows"] == 12
        for i in range(12):
            if i == 5:
                assert reader.tombstoned(i) == ("retry", 'out of "memory"\nä')
                assert reader.read(i, "picture") is None
                continue
            assert reader.tombstoned(i) is None
            assert reader.read(i, "picture") == b"picture" * i
            assert reader.read(i, "text") == (f"row {i}".encode() if i % 3 else None)
            expected = {
                "score": i / 3,
                "count": i,
                "note": None,
                "good": i % 2 == 0,
                "split": "train",
                "share.road": None,
            }
            assert reader.scalars(i) == expected
            assert reader.scalar(i, "count") == i
        with pytest.raises(ShardError, match="no field mask"):
            reader.read(0, "mask")
    assert receipt["tombstones"] == {"permanent": 0, "retry": 1, "removed": 0}
    assert receipt["splits"] == {"train": 11, "val": 1}
    assert receipt["rejected"] == [{"id": "a/b\udcff.jpg", "reason": "image_empty", "detail": "zero bytes"}]
    assert receipt["sha256"] == sha256_file(path.tar)
    assert receipt["parquet_sha256"] == sha256_file(path.parquet)
    assert receipt["bytes"] == path.tar.stat().st_size


def test_the_index_says_where_payloads_lie(path: ShardPath) -> None:
    """As the format's page promises to readers that are not ours."""
    write(path)
    tar = path.tar.read_bytes()
    for row in pq.read_table(path.parquet).to_pylist():
        for field in ("picture", "text"):
            if row[f"{field}.offset"] is None:
                continue
            payload = tar[row[f"{field}.offset"] : row[f"{field}.offset"] + row[f"{field}.length"]]
            assert zlib.crc32(payload) == row[f"{field}.crc32"]
            header = tar[row[f"{field}.offset"] - 512 : row[f"{field}.offset"]]
            assert header.startswith(f"{row['key']}.{row[f'{field}.ext']}\0".encode())


def test_members_of_random_sizes_stay_aligned(path: ShardPath) -> None:
    random = dice()
    sizes = [0, 1, 511, 512, 513, 10240, *(random.randrange(5000) for _ in range(30))]
    payloads = {key_of(str(i)): random.randbytes(size) for i, size in enumerate(sizes)}
    with ShardWriter(path, HEAD) as writer:
        for key in sorted(payloads):
            writer.add(key, {"text": ("txt", payloads[key])})
        receipt = writer.publish()
    assert receipt["bytes"] % 10240 == 0
    with ShardReader(path) as reader:
        assert {key: reader.read(i, "text") for i, key in enumerate(reader.keys)} == payloads


def test_an_exception_discards_everything(path: ShardPath) -> None:
    with pytest.raises(RuntimeError), ShardWriter(path, HEAD) as writer:
        writer.add(KEYS[0], {"text": ("txt", b"x")})
        raise RuntimeError
    assert tree(path.folder) == {}
    write(path)
    before = tree(path.folder)
    with pytest.raises(RuntimeError), ShardWriter(path, HEAD) as writer:
        writer.add(KEYS[0], {"text": ("txt", b"x")})
        raise RuntimeError
    assert tree(path.folder) == before


def test_leaving_without_publishing_publishes_nothing(path: ShardPath) -> None:
    with ShardWriter(path, HEAD) as writer:
        writer.add(KEYS[0], {"text": ("txt", b"x")})
    assert tree(path.folder) == {}


def test_leftovers_of_this_shard_only_are_removed(path: ShardPath) -> None:
    path.parent.mkdir(parents=True)
    for name in (".00000007.tar.a.tmp", ".00000007.parquet.b.tmp", ".00000007.json.c.tmp", ".00000008.tar.d.tmp"):
        (path.parent / name).touch()
    write(path)
    assert [name for name in tree(path.parent) if name.endswith(".tmp")] == [".00000008.tar.d.tmp"]


def test_faults_of_a_stage_are_caught(path: ShardPath) -> None:
    with ShardWriter(path, HEAD) as writer:
        writer.add(KEYS[1], {"text": ("txt", b"x")})
        for key in (KEYS[1], KEYS[0]):
            with pytest.raises(ValueError, match="must ascend"):
                writer.add(key, {"text": ("txt", b"x")})
        with pytest.raises(ValueError, match="is no key"):
            writer.add("z.dot", {"text": ("txt", b"x")})
        with pytest.raises(ValueError, match="at least one field"):
            writer.add(KEYS[2], {})
        with pytest.raises(ValueError, match="extension gif"):
            writer.add(KEYS[3], {"picture": ("gif", b"x")})
        with pytest.raises(ValueError, match="not among"):
            writer.add(KEYS[4], {"mask": ("png", b"x")})
        with pytest.raises(ValueError, match="not among"):
            writer.add(KEYS[5], {"text": ("txt", b"x")}, {"scores": 1})
        with pytest.raises(ValueError, match=r"scalar count is 1\.5, not int"):
            writer.add(KEYS[5], {"text": ("txt", b"x")}, {"count": 1.5})
        with pytest.raises(ValueError, match="kind"):
            writer.tombstone(KEYS[6], "maybe", "")


@pytest.mark.parametrize("name", ["key", "reason", "picture.crc32", "Upper", "with space", "", "a..b"])
def test_names_that_the_index_cannot_hold(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        replace(HEAD, scalars={name: "int"})


def test_a_refused_row_leaves_no_trace(path: ShardPath) -> None:
    """A stage may catch the error and go on with a tombstone for the same key."""
    with ShardWriter(path, HEAD) as writer:
        for fields in ({"text": ("txt", b"x"), "mask": ("png", b"y")}, {"text": ("doc", b"x")}):
            with pytest.raises(ValueError):
                writer.add(KEYS[0], fields)
        writer.tombstone(KEYS[0], "permanent", "refused")
        writer.add(KEYS[1], {"text": ("txt", b"x")})
        writer.publish()
    with ShardReader(path) as reader:
        assert reader.keys == KEYS[:2]
        assert reader.read(1, "text") == b"x"
    with tarfile.open(path.tar) as tar:
        assert tar.getnames() == [f"{KEYS[0]}.tombstone.json", f"{KEYS[1]}.txt"]


def test_two_writers_by_accident_do_no_harm(path: ShardPath) -> None:
    """Equal work by two who both believe to hold the lease: whoever comes last, the shard is whole."""
    receipt = write(path)
    before = tree(path.folder)
    with ShardWriter(path, HEAD) as slow:
        for i, key in enumerate(KEYS[:3]):
            slow.add(key, {"text": ("txt", b"x")}, {"count": i})
        assert write(path) == receipt  # the other one removes slow's temporary file and publishes
        with pytest.raises(FileNotFoundError):
            slow.publish()
    assert write(path) == receipt
    assert tree(path.folder) == before


def test_empty_shards_are_shards(path: ShardPath) -> None:
    with ShardWriter(path, HEAD) as writer:
        writer.reject("a.jpg", "image_empty", "zero bytes")
        receipt = writer.publish()
    assert (receipt["rows"], receipt["bytes"]) == (0, 10240)
    assert len(ShardReader(path)) == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "no tar", "no index", "index flip"])
def test_damage_is_named(path: ShardPath, damage: str) -> None:
    write(path)
    target = path.parquet if "index" in damage else path.tar
    data = bytearray(target.read_bytes())
    reader = ShardReader(path)
    row = 10
    if damage.startswith("no"):
        target.unlink()
    elif damage == "cut":
        target.write_bytes(data[: reader.column("picture.offset")[row] + 5])
    elif damage == "flip":
        data[reader.column("picture.offset")[row] + 5] ^= 1
        target.write_bytes(data)
    else:
        data[-20] ^= 255
        target.write_bytes(data)
    with pytest.raises(ShardError) as error:
        ShardReader(path).read(row, "picture")
    assert target.name in str(error.value)
    assert path.receipt.name in str(error.value), "the message says what to do"
    if damage in ("cut", "flip"):
        assert KEYS[row] in str(error.value)


def test_order_of_fields_in_the_head_is_the_order_in_the_tar(path: ShardPath) -> None:
    first = write(path)
    swapped = replace(HEAD, fields={"text": "txt", "picture": "jpg|png"})
    assert write(path, swapped)["sha256"] != first["sha256"]
    assert write(path, HEAD)["sha256"] == first["sha256"]


def test_readers_close_their_files(path: ShardPath) -> None:
    write(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        ShardReader(path).read(1, "picture")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert pickle.loads(pickle.dumps(path)) == path
