"""What a training reads: buckets, ledger and copies on the node's disk, through real trainings on two ranks."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import SDM, STEPS, gan, sdm
from train_ranks import Ranks, job_of, train

from semiocity.cli import main
from semiocity.data.lease import Owner
from semiocity.data.manifest import merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.errors import UserError
from semiocity.train.ledger import check, read_steps

FP32 = {"stage": 0, "precision": "fp32"}
BUCKETS = {"sizes": [[16, 24], [16, 16], [24, 16]]}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of three shapes with label maps, in four shards."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "in").mkdir()
    rng = np.random.default_rng(1)
    for i in range(30):
        width, height = ((20, 30), (20, 20), (36, 24))[i % 3]
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{i}.png")
        Image.fromarray(pixels[..., 0] % 2).save(folder / "in" / f"{i}.label.png")
    classes = [{"name": "road", "color": [90, 90, 90]}, {"name": "sky", "color": [0, 0, 255]}]
    recipe = Recipe.model_validate(
        {
            "name": "shapes",
            "source": {"kind": "folder", "root": str(folder / "in")},
            "fields": ["image", "label"],
            "classes": classes,
            "shard_rows": 8,
        }
    )
    plan = make_plan(recipe, folder / "shapes")
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(folder / "shapes", "base", plan.revision)
    return folder / "shapes"


def bucketed(**data: Any) -> dict[str, Any]:
    common = {"size": 16, "tail": "pad", "window": 2, "buckets": BUCKETS, "ledger": True}
    return sdm(FP32, model={**SDM, "edges": False}, data={**common, **data}, steps=STEPS + 2)


def keys_of(run: Path) -> list[list[str]]:
    return [[key for line in lines for key in line["keys"]] for _, lines in read_steps(run)]


def test_buckets_stop_and_resume_with_a_ledger(
    ranks: Ranks, lone_rank: Ranks, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks, a stop, then one rank: batches of one shape, every sample once an epoch."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert ranks.call(train, bucketed(), whole, shapes, 0, 0) == [True, True]
    assert ranks.call(train, bucketed(), moved, shapes, 1, 3) == [False, False]
    assert lone_rank.call(train, bucketed(), moved, shapes, 0, 0) == [True]
    assert keys_of(whole) == keys_of(moved)
    assert len(keys_of(whole)) == STEPS + 2
    assert {lines[0]["bucket"] for _, lines in read_steps(whole)} == {0, 1, 2}

    found = check(moved)
    assert found.ok, found.faults
    assert [(part["first_step"], part["ranks"], part["steps"]) for part in found.parts] == [
        (0, 2, 3),
        (3, 1, STEPS - 1),
    ]
    assert main(["ledger", str(moved), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["steps"], said["of"]) == (True, STEPS + 2, STEPS + 2)
    # 30 rows in three buckets of ten, batches of eight: two a bucket, the second one padded.
    assert said["epochs"][0] == {"epoch": 0, "rows": 30, "batches": 6, "padded": 18, "left_out": 0}
    file = next((moved / "ledger").glob("0001-00001*"))
    file.write_bytes((whole / "ledger" / file.name).read_bytes()[:40])
    assert main(["ledger", str(moved)]) == 1
    assert "FAULT steps 0 to 2 are missing" in capsys.readouterr().out


def test_a_ledger_over_a_rollback(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    """Steps that are done again after going back to a checkpoint count once."""
    model = {"poison_steps": [3, 4], "poison_until_file": str(tmp_path / "healed")}
    settings = gan(FP32, model, checkpoint_every=2, bad_steps=2)
    settings["data"] = {**settings["data"], "ledger": True}
    assert ranks.call(train, settings, tmp_path / "run", city, 0, 0) == [True, True]
    found = check(tmp_path / "run")
    assert found.ok, found.faults
    assert [(part["first_step"], part["steps"]) for part in found.parts] == [(0, 2), (2, STEPS - 2)]


def test_no_ledger_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", str(tmp_path)]) == 2
    assert "no ledger here; set data.ledger = true" in capsys.readouterr().err


def test_training_reads_the_copies(ranks: Ranks, city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same training with copies on the node's disk, which are all there at its end."""
    plain, staged = tmp_path / "plain", tmp_path / "staged"
    settings = gan(FP32)
    assert ranks.call(train, settings, plain, city, 0, 0) == [True, True]
    node = tmp_path / "node"
    settings["data"] = {**settings["data"], "stage_to": str(node / "shards")}
    assert ranks.call(train, settings, staged, city, 0, 0) == [True, True]
    assert (plain / "metrics.jsonl").read_text() == (staged / "metrics.jsonl").read_text()
    assert list(node.rglob("*.tar"))
    assert not list(node.rglob("*.tmp"))
    settings["data"]["stage_to"] = "$NO_SUCH_VARIABLE/shards"
    with pytest.raises(UserError, match=re.escape('data.stage_to = "$NO_SUCH_VARIABLE/shards"')):
        ranks.call(train, settings, tmp_path / "other", city, 0, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (gan(FP32, data={"size": 8, "buckets": BUCKETS}), "data.buckets: this task trains at one size, data.size"),
        (bucketed(buckets={"sizes": [[16, 15]]}), "data.buckets: 16×15: height 15 is no multiple of 2"),
        (bucketed(buckets={}), r"give either sizes = \[\[width, height\], …\] or area = PIXELS"),
        (bucketed(buckets={"sizes": [[16, 16], [32, 32]]}), "have the same shape"),
        (bucketed(buckets={"sizes": [[16, 16]], "step": 8}), "step and max_aspect go with area"),
        (bucketed(buckets={"area": 100, "step": 64}), "no room for a bucket of 64×64"),
    ],
)
def test_buckets_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        job_of(Path("x"), **settings)


def test_buckets_belong_to_a_runs_identity(ranks: Ranks, shapes: Path, tmp_path: Path) -> None:
    assert ranks.call(train, bucketed(), tmp_path, shapes, 0, 2) == [False, False]
    with pytest.raises(UserError, match=r"data.buckets.*when this checkpoint was written"):
        ranks.call(train, bucketed(buckets={"sizes": [[16, 16], [24, 16]]}), tmp_path, shapes, 0, 0)
