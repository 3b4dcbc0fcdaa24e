"""A shard goes on where its last attempt ended, whatever is left of that attempt's journal: the same bytes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from stage_data import contents, run_stage, stage_revision, street_rows, write_base

from semiocity.data.journal import Journal, died_in
from semiocity.data.lease import Owner
from semiocity.data.manifest import ShardPath, column_folder
from semiocity.stages.base import BadRow, Made, Row, Stage, StageArgs, Tombstone
from semiocity.stages.runner import run_shards

ROWS, BATCH = 12, 2
OTHER = Owner("77", 0, 3, "another-host", 1)


class Noted(Stage):
    """Payloads of all lengths, scalars of all types, tombstones of both kinds; counts the rows that it gets."""

    name, version, column, Args = "noted", 1, "noted", StageArgs

    def __init__(self, batch: int = BATCH) -> None:
        super().__init__(StageArgs(batch=batch))
        self.seen: list[str] = []

    def needs(self) -> tuple[str, ...]:
        return ("base.label",)

    def fields(self) -> dict[str, str]:
        return {"note": "txt", "more": "bin"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"i": "int", "f": "float", "s": "str", "b": "bool"}

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        self.seen += [row.key for row in rows]
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Made | Tombstone:
        number = int(row.key[:6], 16)
        if number % 5 == 0:
            return Tombstone("permanent", "naïve")
        if number % 5 == 1:
            raise BadRow("odd")
        fields = {"note": ("txt", row.key.encode() * (number % 7)), "more": ("bin", os.urandom(0))}
        if number % 3:
            del fields["more"]
        facts = {"i": number << 20, "f": number / 7, "s": "köln", "b": number % 2 == 0}
        return Made(fields, {} if number % 4 == 0 else facts | ({"f": float("nan")} if number % 6 == 0 else {}))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("data") / "rows", street_rows(ROWS, 32), ROWS, classes=["road"])


@pytest.fixture(scope="module")
def calm(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The column of an attempt that nobody disturbed."""
    own = Path(shutil.copytree(rows, tmp_path_factory.mktemp("calm") / "rows"))
    return contents(run_stage(Noted(), own))


def stopped(dataset: Path, batches: int, stage: Stage | None = None, **more: Any) -> ShardPath:
    """The shard after an attempt that was stopped after so many batches."""
    stage = stage or Noted()
    answers: Iterator[bool] = iter([False] * (batches + 1))
    made = stage_revision(stage, dataset)
    assert not run_shards(stage, dataset, "noted", made, [0], OTHER, lambda: next(answers, True), **more)
    return ShardPath(column_folder(dataset, "noted", made), 0)


@pytest.mark.parametrize("batches", range(1, ROWS // BATCH))
def test_a_stopped_shard_goes_on_with_the_next_row(
    rows: Path, tmp_path: Path, calm: dict[str, bytes], batches: int
) -> None:
    own = Path(shutil.copytree(rows, tmp_path / "rows"))
    first, second = Noted(), Noted()
    path = stopped(own, batches, first)
    assert list(contents(path.folder)) == [f"00000/{path.journal.name}"] and not died_in(path)
    folder = run_stage(second, own)
    assert contents(folder) == calm
    assert len({*first.seen, *second.seen}) == ROWS
    # A batch with a row that raises is stopped row by row: it began as a whole, its other row is still to come.
    assert len(set(first.seen) & set(second.seen)) < BATCH


def test_whatever_is_left_of_a_journal_the_bytes_are_the_same(
    rows: Path, tmp_path: Path, calm: dict[str, bytes]
) -> None:
    """Torn anywhere, as by a killed process or a node that went down; a byte damaged; bytes behind its end."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    own = Path(shutil.copytree(rows, tmp_path / "rows"))
    path = stopped(own, ROWS // BATCH - 1)
    whole = path.journal.read_bytes()
    for case in range(24):
        left = bytearray(whole[: chance.randrange(len(whole) + 1)] if case % 3 else whole)
        if case % 3 == 2 and left:
            left[chance.randrange(len(left))] ^= 1 << chance.randrange(8)
        if case % 6 == 3:
            left += chance.randbytes(40)
        shutil.rmtree(path.folder)
        path.parent.mkdir(parents=True)
        path.journal.write_bytes(left)
        stage = Noted()
        assert contents(run_stage(stage, own)) == calm, f"seed {seed}, case {case}, {len(left)} bytes left"
        if case == 0:
            assert len(set(stage.seen)) <= 2 * BATCH, "what is sound was used"


def test_a_journal_of_something_else_is_thrown_away(rows: Path, tmp_path: Path, calm: dict[str, bytes]) -> None:
    own = Path(shutil.copytree(rows, tmp_path / "rows"))
    path = stopped(own, 3, Noted(batch=3))
    foreign = path.journal.read_bytes()
    shutil.rmtree(path.folder)
    stage = Noted()
    mine = ShardPath(column_folder(own, "noted", stage_revision(stage, own)), 0)
    mine.parent.mkdir(parents=True)
    mine.journal.write_bytes(foreign)
    assert contents(run_stage(stage, own)) == calm
    assert len(set(stage.seen)) == ROWS


def test_two_owners_by_accident_do_no_harm(rows: Path, tmp_path: Path) -> None:
    """A node that slept writes on into a journal that was taken over."""
    path = ShardPath(tmp_path / "column" / "noted" / "abc", 0)
    row = Made({"note": ("txt", b"x")}, {"f": 0.1})
    sleeper = Journal(path, {"a": 1}, 2, {})
    sleeper.at(0, 2)
    sleeper.add(0, [("k0", row), ("k1", Tombstone("retry", "busy"))], 2)
    sleeper.at(2, 2)
    other = Journal(path, {"a": 1}, 2, {})
    assert other.died is not None and (other.died.start, other.done) == (2, 2)
    sleeper.add(2, [("k2", row), ("k3", row)], 2)
    other.at(2, 2)
    other.add(2, [("k2", row), ("k3", row)], 2)
    other.close()
    third = Journal(path, {"a": 1}, 2, {})
    assert third.done == 4 and third.died is None and died_in(path)
    assert [key for key, _ in third.replay()] == ["k0", "k1", "k2", "k3"]
    assert dict(third.replay())["k0"] == row
    third.left()
    assert not died_in(path)
    third.remove()
    assert not list(path.parent.iterdir())


def test_a_journal_that_cannot_be_written_is_given_up(
    rows: Path, tmp_path: Path, calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(rows, tmp_path / "rows"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("semiocity.data.journal._write", full)
    assert contents(run_stage(Noted(), own)) == calm
