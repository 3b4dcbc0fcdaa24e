"""The validation loss: the same whatever the ranks, the same after an interruption, and no part of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import checkpoint, differing, sdm
from train_ranks import Ranks, job_of, train

from semiocity.data.columns import Dataset
from semiocity.errors import UserError
from semiocity.models import sdm_cost
from semiocity.models.sdm import SDMConfig
from semiocity.train.lines import read_metrics
from semiocity.train.validation import choose, cut

VALIDATE: dict[str, Any] = {"validate_every": 2, "validate_samples": 7, "validate_batch": 2}


def losses(run: Path) -> list[dict[str, Any]]:
    return list(read_metrics(run / "validation.jsonl"))


def test_rows_are_spread_over_the_split() -> None:
    assert choose(100, 4) == [0, 25, 50, 75]
    assert choose(3, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_pieces_hold_every_place_once_and_one_bucket_each() -> None:
    buckets = [1, 0, 1, 1, 0, 2, 1]
    pieces = cut([10 * i for i in range(7)], buckets, 2)
    assert sorted(place for piece in pieces for place in piece.places) == list(range(7))
    assert all(len(piece.rows) <= 2 for piece in pieces)
    assert all(buckets[place] == piece.bucket for piece in pieces for place in piece.places)
    assert all(row == 10 * place for piece in pieces for row, place in zip(piece.rows, piece.places))


def test_it_does_not_depend_on_the_ranks(ranks: Ranks, lone_rank: Ranks, city: Path, tmp_path: Path) -> None:
    """Before the first step both have the same weights; then every bit is the same, also where they are divided."""
    settings = sdm({"stage": 3, "precision": "bf16"}, steps=1, sample_every=0, **VALIDATE)
    ranks.call(train, settings, tmp_path / "two", city, 0, 0)
    lone_rank.call(train, settings, tmp_path / "one", city, 0, 0)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [line["step"] for line in one] == [0, 1]
    assert one[0] == two[0]
    assert one[0]["loss"] > 0 and {f"loss_by_t/quarter_{i}" for i in (1, 2, 3, 4)} < one[0].keys()


def test_a_stopped_run_shows_the_same_and_the_training_does_not_notice(
    ranks: Ranks, city: Path, tmp_path: Path
) -> None:
    """The stop comes in a step after which a validation and an image grid are due: the next attempt makes them."""
    plain = sdm({"stage": 2, "precision": "bf16"})
    seen = {**plain, **VALIDATE}
    for name, settings, stops in (("plain", plain, [0]), ("whole", seen, [0]), ("halves", seen, [4, 0])):
        for stop in stops:
            ranks.call(train, {**settings, "sample_every": 4}, tmp_path / name, city, 1, stop)
    assert [line["step"] for line in losses(tmp_path / "whole")] == [0, 2, 4, 6]
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert (tmp_path / "halves/grids/step-00000004.png").read_bytes() == (
        tmp_path / "whole/grids/step-00000004.png"
    ).read_bytes()
    for other in ("whole", "halves"):
        assert differing(checkpoint(tmp_path / "plain"), checkpoint(tmp_path / other)) == []
        assert (tmp_path / "plain/metrics.jsonl").read_text() == (tmp_path / other / "metrics.jsonl").read_text()
    (speed, *_) = read_metrics(tmp_path / "whole" / "speed.jsonl")
    of_a_sample = speed["speed/tflops_per_gpu"] * 1e12 * 2 / speed["speed/samples_per_s"]
    tiny = SDMConfig(len(classes(city)) + 1, 16, 8, (1, 1), 1, (8,), 8, 4, dropout=0.1, resblock_updown=False)
    assert of_a_sample == pytest.approx(sdm_cost.training_flops(tiny, 16, 16), rel=1e-4)
    assert "speed/mfu" not in speed, "there is no peak for a CPU"
    first, *_, last = losses(tmp_path / "whole")
    assert last["loss"] < first["loss"]


def classes(city: Path) -> tuple[Any, ...]:
    return Dataset.open(city).classes


def test_another_seed_sees_the_same_samples(lone_rank: Ranks, city: Path) -> None:
    one, other = (lone_rank.call(batches, sdm({"stage": 2}, seed=seed, **VALIDATE), city)[0] for seed in (0, 5))
    assert one == other
    assert len(one) == len(set(one)) == 4, "each piece has its own noise"


def batches(world: Any, settings: dict[str, Any], dataset: Path) -> list[str]:
    """Digests of the tensors of every piece."""
    import hashlib
    import tempfile

    from semiocity.train.feed import Feed
    from semiocity.train.options import load
    from semiocity.train.tasks import TASKS
    from semiocity.train.tasks.base import DatasetFacts
    from semiocity.train.validation import Validation

    job = job_of(dataset, **settings)
    with tempfile.TemporaryDirectory() as folder:
        feed = Feed(job, Path(folder), dataset, world)
        data = feed.data
        facts = DatasetFacts(data.name, data.digest, tuple(c.name for c in data.classes), tuple(data.palette), None)
        task = load(TASKS[job.task].task)(job, facts)
        feed.read_by(task)
        made = Validation(job, feed.validated, feed.held_out, feed.sizes, world)
        pieces = [made._batch(task, piece) for piece in made.pieces]
    times = sorted(t for piece in pieces for t in piece["t"].tolist())
    assert times == [int((i + 0.5) / 7 * 1000) for i in range(7)]
    assert not any(piece["drop"].any() for piece in pieces)
    return [
        hashlib.sha256(b"".join(piece[name].numpy().tobytes() for name in sorted(piece))).hexdigest()
        for piece in pieces
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validate_split": "train"}, "validate_split: 'train' is the split that is trained on"),
        ({"data": {"size": 16, "split": ""}}, "every row is trained on and none is held out"),
    ],
)
def test_a_split_that_is_trained_on_is_refused(city: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        job_of(city, **{**sdm({"stage": 2}), **VALIDATE, **changes})
