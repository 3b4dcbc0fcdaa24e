"""Stopped at any step and resumed on another number of ranks: the ledger is that of an uninterrupted run."""

import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semiocity.data.aspects import AspectBuckets
from semiocity.data.columns import Dataset
from semiocity.data.decode import decode_cropped
from semiocity.data.lease import Owner
from semiocity.data.loader import Arrays, Room, Rows, slices, stack
from semiocity.data.manifest import merge
from semiocity.data.order import Batch, Order
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.train.ledger import Ledger, check, folder_of, next_part, read_steps

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

GLOBAL_BATCH = 24
WORLDS = (1, 2, 3, 4, 6, 8, 12, 24)
WORKERS = (0, 1, 2, 4)
BUCKETS = ((12, 24), (16, 16), (24, 12))
STEPS = 11
"""More than two epochs of the dataset below."""


class Sitting(NamedTuple):
    """A stretch of a run: until which step, on how many ranks, with how many workers each."""

    until: int
    ranks: int
    workers: int


@pytest.fixture(scope="module")
def pictures() -> Iterator[Path]:
    """100 rows of three shapes in 9 shards."""
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(1)
    (folder / "in").mkdir()
    for i in range(100):
        width, height = ((12, 24), (16, 16), (24, 12))[i % 3 if i % 7 else 0]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / "in" / f"{i}.jpg")
    recipe = Recipe.model_validate(
        {"name": "shapes", "source": {"kind": "folder", "root": str(folder / "in")}, "shard_rows": 12}
    )
    plan = make_plan(recipe, folder / "shapes")
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(folder / "shapes", "base", plan.revision)
    yield folder / "shapes"
    shutil.rmtree(folder)


def decode(row: Mapping[str, bytes | None], size: tuple[int, int], room: Room) -> Arrays:
    return {"image": decode_cropped(row["base.image"] or b"", size[::-1], room("image", (*size, 3), np.uint8))}


def collate(batch: Batch, decoded: Sequence[Arrays]) -> dict[str, torch.Tensor]:
    return {"image": stack(decoded, "image"), "row": torch.from_numpy(batch.rows)}


def train(dataset: Path, run: Path, sittings: Sequence[Sitting], buckets: bool, tail: str = "drop") -> None:
    """What the ranks of a training read, one rank after the other, each sitting as a process of its own would."""
    first = 0
    for sitting in sittings:
        part = next_part(run)
        view = Dataset.open(dataset).view(["base.image"])
        made = AspectBuckets(view, BUCKETS) if buckets else None
        order = Order(view.digest, view.shard_sizes, 7, GLOBAL_BATCH, 3, tail, made)  # type: ignore[arg-type]
        head = {
            "first_step": first,
            "ranks": sitting.ranks,
            "steps": STEPS,
            "dataset": str(dataset),
            "shards": view.dataset.shards,
            "fields": ["base.image"],
            "split": None,
            "order": order.facts,
        }
        for rank in range(sitting.ranks):
            ledger = Ledger(run, part, rank, head)
            for piece in slices(
                Rows(view, decode),
                order,
                rank=rank,
                world=sitting.ranks,
                steps=range(first, sitting.until),
                collate=collate,
                sizes=[(height, width) for width, height in BUCKETS] if buckets else [(16, 16)],
                workers=sitting.workers,
                with_keys=True,
            ):
                assert piece.tensors["row"].tolist() == piece.rows.tolist()
                assert piece.tensors["image"].shape[1:3] == (BUCKETS[piece.bucket][::-1] if buckets else (16, 16))
                ledger.note(piece)
            ledger.close()
        first = sitting.until


def batches(run: Path) -> list[tuple[int, int, list[str]]]:
    """(step, bucket, keys of the global batch) as the ledger tells."""
    return [
        (step, lines[0]["bucket"], [key for line in lines for key in line["keys"]]) for step, lines in read_steps(run)
    ]


def check_elastic(dataset: Path, sittings: Sequence[Sitting], buckets: bool, tail: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        train(dataset, whole, [Sitting(STEPS, 1, 0)], buckets, tail)
        train(dataset, parts, sittings, buckets, tail)
        assert batches(parts) == batches(whole)
        found = check(parts)
        assert found.ok, found.faults
        assert found.steps == STEPS
        assert [part["ranks"] for part in found.parts] == [sitting.ranks for sitting in sittings]


@st.composite
def sittings(draw: st.DrawFn) -> list[Sitting]:
    stops = [*sorted(draw(st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=2))), STEPS]
    # Workers cost a process each; few ranks have them here, all of them in the exhaustive test.
    worlds = [draw(st.sampled_from(WORLDS)) for _ in stops]
    return [
        Sitting(stop, world, draw(st.sampled_from(WORKERS)) if world < 3 else 0) for stop, world in zip(stops, worlds)
    ]


@settings(max_examples=5, deadline=None, print_blob=True, database=None)
@given(sittings=sittings(), buckets=st.booleans(), tail=st.sampled_from(["drop", "pad"]))
def test_resumed_on_other_ranks(pictures: Path, sittings: list[Sitting], buckets: bool, tail: str) -> None:
    check_elastic(pictures, sittings, buckets, tail)


@pytest.mark.soak
@pytest.mark.parametrize("buckets", [False, True], ids=["plain", "buckets"])
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_every_world_worker_and_stop(pictures: Path, world: int, workers: int, buckets: bool) -> None:
    """From `world` ranks to every other number, stopped at every step."""
    others = [other for other in WORLDS if other != world]
    for stop in range(1, STEPS):
        other = others[stop % len(others)]
        then = workers if other < 3 else 0  # a process each
        check_elastic(pictures, [Sitting(stop, world, workers), Sitting(STEPS, other, then)], buckets, "drop")
    for other in others:
        check_elastic(pictures, [Sitting(STEPS // 2, world, 0), Sitting(STEPS, other, 0)], buckets, "pad")


# -- what a check finds -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> Path:
    """Two ranks, then three, with padded tails and buckets."""
    train(pictures, tmp_path / "run", [Sitting(5, 2, 0), Sitting(STEPS, 3, 0)], buckets=True, tail="pad")
    return tmp_path / "run"


def rewrite(run: Path, part: int, rank: int, change: Any) -> None:
    """Pass the lines of a file (head first) through `change`."""
    path = folder_of(run) / f"{part:04d}-{rank:05d}.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in change(lines)).encode()))


def test_a_part_that_was_killed_is_superseded(pictures: Path, run: Path) -> None:
    """Steps done again after a kill count once; a torn end and a part that never began count for nothing."""
    torn = folder_of(run) / "0002-00001.jsonl.gz"
    whole = batches(run)
    shutil.copytree(run, run.with_name("killed"))
    killed = run.with_name("killed")
    (folder_of(killed) / torn.name).write_bytes(torn.read_bytes()[:-30])
    found = check(killed)
    assert found.ok
    assert 5 < found.steps < STEPS
    (folder_of(killed) / torn.name).write_bytes(b"")
    found = check(killed)
    assert found.ok
    assert found.steps == 5
    # Part 3 began again at step 4, part 4 at step 2, and only the latter came to the end.
    for part, first in ((3, 4), (4, 2)):
        view = Dataset.open(pictures).view(["base.image"])
        order = Order(view.digest, view.shard_sizes, 7, GLOBAL_BATCH, 3, "pad", AspectBuckets(view, BUCKETS))
        head = {"first_step": first, "ranks": 1, "steps": STEPS, "dataset": str(pictures), "split": None}
        more = {"shards": view.dataset.shards, "fields": ["base.image"], "order": order.facts}
        ledger = Ledger(killed, part, 0, {**head, **more})
        if part == 4:
            rows = Rows(view, decode)
            sizes = [(height, width) for width, height in BUCKETS]
            for piece in slices(
                rows, order, rank=0, world=1, steps=range(first, STEPS), collate=collate, sizes=sizes, with_keys=True
            ):
                ledger.note(piece)
        ledger.close()
    (folder_of(killed) / "0005-00000.jsonl.gz").write_bytes(b"")
    found = check(killed)
    assert found.ok, found.faults
    assert [(part["part"], part["first_step"], part["steps"]) for part in found.parts] == [(1, 0, 2), (4, 2, STEPS - 2)]
    assert batches(killed) == whole


def test_faults_are_named(run: Path) -> None:
    def other_key(lines: list[str]) -> list[str]:
        line = json.loads(lines[2])
        line["keys"][0] = line["keys"][1]
        return [*lines[:2], json.dumps(line), *lines[3:]]

    def other_rows(lines: list[str]) -> list[str]:
        line = json.loads(lines[2])
        line["rows"][3] = line["rows"][4]
        return [*lines[:2], json.dumps(line), *lines[3:]]

    cases: list[tuple[Any, list[str]]] = [
        (other_key, [r"step 1 \(part 1\): row \d+ was .*, it is"]),
        (other_rows, [r"step 1 .*: other rows than the order says, from place 3", r"row \d+ comes a second time"]),
        (lambda lines: [*lines[:2], *lines[3:]], ["the ranks' lines are of steps 2, 1"]),
        (lambda lines: lines[:4], ["steps 3 to 4 are missing; part 2 goes on at step 5"]),
    ]
    for change, said in cases:
        spoiled = run.with_name("spoiled")
        shutil.copytree(run, spoiled)
        rewrite(spoiled, 1, 0, change)
        found = check(spoiled)
        assert not found.ok
        for text in said:
            assert any(re.search(text, fault) for fault in found.faults), (text, found.faults)
        shutil.rmtree(spoiled)
