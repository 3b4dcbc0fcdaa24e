"""A reduce stage that was stopped or killed goes on with what it had gathered, and leaves nothing behind when done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stage_data import contents

from semiocity.config import Strict
from semiocity.data import leftovers
from semiocity.data.columns import Dataset
from semiocity.data.layout import GATHERED
from semiocity.data.lease import Owner
from semiocity.data.manifest import column_folder, merge, read_manifest
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.data.takedown import carry_out, request
from semiocity.data.verify import verify
from semiocity.errors import Stopped, UserError
from semiocity.stages import gathered, reduce_runner
from semiocity.stages.base import Made, Tombstone
from semiocity.stages.reduce import Reduce, revision
from semiocity.stages.reduce_runner import run_reduce

SHARDS = 7


class Rank(Reduce):
    """The place of each row among all rows by its key."""

    name, version, column, Args = "rank", 1, "rank", Strict

    def needs(self) -> tuple[str, ...]:
        return ("base.split", "base.width")

    def fields(self) -> dict[str, str]:
        return {"record": "json"}

    def scalars(self) -> dict[str, Any]:
        return {"rank": "int"}

    def conclude(self, gathered: Sequence[Any], threads: int, stop: Callable[[], bool]) -> Any:
        if stop():
            raise Stopped
        assert len(gathered) == SHARDS
        keys = [table.column("key").to_pylist() for table in gathered]
        order = {key: place for place, key in enumerate(sorted(key for shard in keys for key in shard))}
        return [[order[key] for key in shard] for shard in keys]

    def rows(self, conclusion: Any, shard: int) -> list[Made | Tombstone]:
        return [Made({"record": ("json", b"{}")}, {"rank": rank}) for rank in conclusion[shard]]


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gathered, "GROUP_SHARDS", 2)
    monkeypatch.setattr(reduce_runner, "GROUP_SHARDS", 2)
    for number in range(2 * SHARDS):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(tmp_path / f"street-{number}.png")
    source = {"kind": "folder", "root": str(tmp_path)}
    plan = make_plan(Recipe.model_validate({"name": "town", "source": source, "shard_rows": 2}), tmp_path / "town")
    assert pack_shards(plan, range(SHARDS), Owner.here())
    merge(tmp_path / "town", "base", plan.revision)
    return tmp_path / "town"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the shards whose indexes are read."""
    found: list[int] = []
    live = reduce_runner.live

    def noted(dataset: Any, shard: int, scalars: Any) -> Any:
        found.append(shard)
        return live(dataset, shard, scalars)

    monkeypatch.setattr(reduce_runner, "live", noted)
    monkeypatch.setattr(reduce_runner, "READERS", 1)
    return found


def folder_of(town: Path) -> Path:
    return column_folder(town, "rank", revision(Rank(Strict()), read_manifest(town)))


def run(town: Path, stop: Callable[[], bool] = lambda: False, report: Any = lambda facts: None) -> bool:
    stage = Rank(Strict())
    made = revision(stage, read_manifest(town))
    return run_reduce(stage, town, "rank", made, range(SHARDS), Owner.here(), stop, report)


def stopped_after(town: Path, shards: int) -> None:
    seen: list[dict[str, Any]] = []
    assert not run(town, lambda: len(seen) >= shards, seen.append)


def test_a_stop_while_gathering_loses_nothing_that_was_read(town: Path, read: list[int]) -> None:
    stopped_after(town, 3)
    journal = sorted(path.name[:14] for path in (folder_of(town) / GATHERED).iterdir())
    assert journal == ["00000000-00002", "00000002-00001"]
    assert verify(town) == [], "a column that is being made is no fault, nor is its journal"
    read.clear()
    stopped_after(town, 5)
    assert min(read) == 3
    read.clear()
    assert run(town)
    assert read == [5, 6]
    assert not (folder_of(town) / GATHERED).exists()
    made = contents(folder_of(town))
    for path in sorted(folder_of(town).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert run(town) and contents(folder_of(town)) == made


def test_a_stop_while_thinking_or_writing_reads_nothing_again(town: Path, read: list[int]) -> None:
    seen: list[dict[str, Any]] = []
    assert not run(town, lambda: len(seen) == SHARDS, seen.append)
    read.clear()
    assert not run(town, lambda: len(list(folder_of(town).rglob("*.tar"))) == 3)
    assert run(town) and read == []
    merge(town, "rank", folder_of(town).name)
    assert verify(town) == []


def test_a_kill_loses_a_group_at_most(town: Path, read: list[int]) -> None:
    def killed(facts: dict[str, Any]) -> None:
        if facts.get("gathered") == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(town, report=killed)
    read.clear()
    assert run(town)
    assert read == [6]


def test_a_damaged_journal_is_read_anew(town: Path, read: list[int]) -> None:
    stopped_after(town, 5)
    second = sorted((folder_of(town) / GATHERED).iterdir())[1]
    second.write_bytes(second.read_bytes()[:-3] + b"abc")
    read.clear()
    assert run(town)
    assert read == [2, 3, 4, 5, 6]


def test_the_journal_of_former_rows_goes(town: Path) -> None:
    stopped_after(town, 5)
    old = folder_of(town)
    key = Dataset.open(town).reader("base", 1).keys[0]
    carry_out(town, request(town, [key], "asked for"), Owner.here())
    assert not any(key.encode() in path.read_bytes() for path in town.rglob("*") if path.is_file())
    assert not (old / GATHERED).exists(), "it holds keys"
    (old / GATHERED).mkdir(parents=True)
    with pytest.raises(UserError, match="changed since the job was submitted"):
        run_reduce(Rank(Strict()), town, "rank", old.name, range(SHARDS), Owner.here())
    assert not (old / GATHERED).exists()


def test_what_nobody_goes_on_with_is_a_leftover_after_a_day(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(town, 5)
    journal = folder_of(town) / GATHERED
    now = time.time()
    monkeypatch.setattr(leftovers.time, "time", lambda: now + 80_000)
    assert journal not in leftovers.leftovers(town, grace_s=600), "its job may wait in a queue"
    monkeypatch.setattr(leftovers.time, "time", lambda: now + 90_000)
    assert journal in leftovers.leftovers(town, grace_s=600)
