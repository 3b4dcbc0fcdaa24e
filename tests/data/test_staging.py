"""Copies of shards on a node's disk: whole or not at all, bounded, checked, and never in the way of reading."""

import errno
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from semiocity.data.columns import Dataset
from semiocity.data.staging import Stage, Stager, Wanted, copy_checked, files_of
from semiocity.errors import UserError

ENOUGH_S = 30
PLENTY_MB = 1000


def files(dataset: Dataset, shards: Sequence[int] | None = None) -> list[Wanted]:
    columns = [(dataset.column("base").folder, dataset.shard_entries("base"))]
    return files_of(columns, range(dataset.shards) if shards is None else shards)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "node")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def stager(stage: Stage, warnings: list[str]) -> Iterator[Stager]:
    made = Stager(stage, PLENTY_MB, warnings.append)
    yield made
    made.close()


def contents(dataset: Dataset) -> list[bytes]:
    view = dataset.view(["base.image", "base.label"], "train")
    return [value for i in range(len(view)) for value in view.read(i).values()]


def copies(stage: Stage) -> list[Path]:
    return sorted(path for path in stage.folder.rglob("*") if path.suffix in (".tar", ".parquet"))


def test_reading_goes_to_the_copy(own_town: Path, stage: Stage, stager: Stager, warnings: list[str]) -> None:
    expected = contents(Dataset.open(own_town))
    dataset = Dataset.open(own_town)
    stager.want(files(dataset))
    assert stager.wait(ENOUGH_S)
    assert len(copies(stage)) == 2 * dataset.shards
    # The shared files are gone, as on a file system that hangs: only receipts and manifests are left.
    for path in (*own_town.rglob("*.tar"), *own_town.rglob("*.parquet")):
        path.unlink()
    dataset.stage = stage
    assert contents(dataset) == expected
    assert warnings == []


def test_what_is_not_copied_is_read_from_the_shared_file(own_town: Path, stage: Stage, stager: Stager) -> None:
    dataset = Dataset.open(own_town)
    stager.want(files(dataset, [1]))
    assert stager.wait(ENOUGH_S)
    dataset.stage = stage
    assert contents(dataset) == contents(Dataset.open(own_town))
    assert len(copies(stage)) == 2


def test_an_evicted_copy_stays_readable_for_who_has_it_open(own_town: Path, stage: Stage, stager: Stager) -> None:
    dataset = Dataset.open(own_town)
    stager.want(files(dataset))
    assert stager.wait(ENOUGH_S)
    dataset.stage = stage
    reader = dataset.reader("base", 0)
    for path in (*copies(stage), *own_town.rglob("*.tar")):
        path.unlink()
    assert reader.read(0, "image")


def test_the_least_recently_used_go_first(tmp_path: Path, stage: Stage, warnings: list[str]) -> None:
    """Four files of 0.3 MB in a folder of 1 MB: three at a time."""
    wanted = []
    for number in range(4):
        content = os.urandom(300_000)
        source = tmp_path / f"{number}.tar"
        source.write_bytes(content)
        wanted.append(Wanted(source, len(content), hashlib.sha256(content).hexdigest()))
    own = stage.folder / "ab" / "mine.tar"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(10**6))
    stager = Stager(stage, 1, warnings.append)

    def there() -> list[bool]:
        assert stager.wait(ENOUGH_S)
        return [stage.place(item.source, item.sha256).exists() for item in wanted]

    try:
        for number, item in enumerate(wanted[:3]):
            stager.want([item])
            assert sum(there()) == number + 1
            os.utime(stage.place(item.source, item.sha256), (number, number))
        assert stage.find(wanted[0].source, wanted[0].sha256), "used again, so the second is the oldest now"
        stager.want([wanted[3]])
        assert there() == [True, False, True, True]
        # All four do not fit: the most urgent three are kept, and nothing goes round in circles.
        stager.want(wanted)
        assert there() == [True, True, True, False]
        assert warnings == []
        stager.want([Wanted(wanted[0].source, 2 * 10**6, "ab" * 32)])
        assert there() == [True, True, True, False]
        assert ["less than one shard" in text for text in warnings] == [True]
        assert own.exists(), "nobody else's files are evicted"
    finally:
        stager.close()


def test_a_corrupt_file_is_not_copied(own_town: Path, stage: Stage, stager: Stager, warnings: list[str]) -> None:
    dataset = Dataset.open(own_town)
    tar = dataset.reader("base", 1).path.tar
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    stager.want(files(dataset))
    assert stager.wait(ENOUGH_S)
    assert len(warnings) == 1
    assert f"{tar}: its sha256 is not the one in its receipt" in warnings[0]
    assert len(copies(stage)) == 2 * dataset.shards - 1
    assert not list(stage.folder.rglob("*.tmp"))


def test_a_full_disk_is_a_warning(
    town: Path, stage: Stage, stager: Stager, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    dataset = Dataset.open(town)
    stager.want(files(dataset))
    assert stager.wait(ENOUGH_S)
    assert copies(stage) == []
    assert len(warnings) == 1
    assert "No space left on device; what is not copied is read from the shared files" in warnings[0]
    dataset.stage = stage
    assert contents(dataset) == contents(Dataset.open(town))
    monkeypatch.undo()
    stager.want(files(dataset))
    assert stager.wait(ENOUGH_S)
    assert len(copies(stage)) == 2 * dataset.shards, "there is room again"


def test_a_folder_that_cannot_be_made_is_a_warning(town: Path, tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").touch()
    stager = Stager(Stage(tmp_path / "file" / "node"), PLENTY_MB, warnings.append)
    stager.want(files(Dataset.open(town)))
    assert stager.wait(ENOUGH_S)
    stager.close()
    assert "reading from the shared files instead" in warnings[0]


def asleep() -> bool:
    time.sleep(60)
    return False


def slow_copy(source: Path, target: Path, sha256: str) -> None:
    copy_checked(source, target, sha256, stop=asleep)


def test_killed_while_copying(town: Path, stage: Stage) -> None:
    item = files(Dataset.open(town))[1]
    target = stage.place(item.source, item.sha256)
    target.parent.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=slow_copy, args=(item.source, target, item.sha256))
    process.start()
    deadline = time.monotonic() + ENOUGH_S
    while not list(target.parent.glob(".*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other = Stager(stage, PLENTY_MB)
    assert list(target.parent.glob(".*.tmp")), "it is being copied by a process that lives"
    other.close()
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not target.exists()
    again = Stager(stage, PLENTY_MB)
    assert not list(target.parent.glob(".*.tmp"))
    again.want([item])
    assert again.wait(ENOUGH_S)
    again.close()
    assert target.read_bytes() == item.source.read_bytes()


def stage_all(folder: Path, town: Path) -> None:
    stager = Stager(Stage(folder), PLENTY_MB)
    stager.want(files(Dataset.open(town)))
    stager.wait(ENOUGH_S)
    stager.close()


def test_several_processes_of_a_node(town: Path, stage: Stage) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=stage_all, args=(stage.folder, town)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for item in files(Dataset.open(town)):
        assert stage.place(item.source, item.sha256).read_bytes() == item.source.read_bytes()
    assert not list(stage.folder.rglob("*.tmp"))


def test_the_place_must_be_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert Stage.at("$TMPDIR/shards").folder == tmp_path / "shards"
    for place in ("$NO_SUCH_VARIABLE/shards", "shards"):
        with pytest.raises(UserError, match="no absolute path; name a folder of the node's own disk"):
            Stage.at(place)
