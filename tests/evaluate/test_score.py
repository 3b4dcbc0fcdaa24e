"""Scores on a real dataset with a segmenter that is really trained, if only for a moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import SIZE

from semiocity.data.columns import Dataset
from semiocity.errors import UserError
from semiocity.evaluate import score
from semiocity.evaluate.images import Pixels
from semiocity.evaluate.judge import IGNORED, batch, judge, weighted_loss
from semiocity.evaluate.options import EvaluateJob, SegmenterSettings
from semiocity.evaluate.pairs import Pairs
from semiocity.evaluate.samples import merge_samples, publish, write_plan

SEGMENTER = {"width": 8, "levels": 3, "steps": 60, "batch": 8, "lr": 5e-3}


def _samples(folder: Path, dataset: Path, per_layout: int, make: Any) -> None:
    """Samples of the held-out layouts as `generate` leaves them, but with pictures `make(i, number)`."""
    held_out = Pairs(Dataset.open(dataset), "val", (SIZE, SIZE))
    keys = [held_out.key(i) for i in range(len(held_out))]
    settings = {"split": "val", "size": [SIZE, SIZE], "images_per_layout": per_layout}
    folder.mkdir(parents=True)
    name = write_plan(folder, settings, {}, keys)
    for i, key in enumerate(keys):
        images = [np.ascontiguousarray(make(held_out, i, number)) for number in range(per_layout)]
        publish(folder, key, name, images, ["0" * 32] * per_layout)
    merge_samples(folder)


def _real(held_out: Pairs, i: int, number: int) -> Pixels:
    return held_out.image(i)


def _other(held_out: Pairs, i: int, number: int) -> Pixels:
    return held_out.image((i + number) % len(held_out))


def _job(dataset: Path, **settings: Any) -> EvaluateJob:
    return EvaluateJob.model_validate(
        {"dataset": dataset, "device": "cpu", "segmenter": SEGMENTER, "kid": {"subsets": 5}, "batch": 4, **settings}
    )


@pytest.fixture(scope="module")
def judged(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the dataset with a trained judge beside it."""
    city = Path(shutil.copytree(packed, tmp_path_factory.mktemp("judged") / "city"))
    _train(city)
    return city


def _train(city: Path) -> tuple[Any, str]:
    pairs = Pairs(Dataset.open(city), "train", (SIZE, SIZE))
    settings = SegmenterSettings.model_validate(SEGMENTER)
    return judge(pairs.at_most(settings.images), settings, [city / "judges"], torch.device("cpu"))


def test_real_images_reach_the_ceiling(judged: Path, tmp_path: Path) -> None:
    _samples(tmp_path / "samples", judged, 1, _real)
    found = score.run(_job(judged), tmp_path, judged)
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    miou, frechet, kid = found["miou"], found["frechet"], found["kid"]
    assert miou["value"] == miou["ceiling"] > 2 * miou["noise"]
    assert all(entry["value"] == entry["ceiling"] for entry in miou["classes"])
    assert sum(entry["share"] for entry in miou["classes"]) == pytest.approx(1)
    for distance in (frechet, kid):
        assert distance["value"] == pytest.approx(distance["floor"])
        assert distance["value"] < 0.5 * distance["noise"]
    assert found["diversity"]["value"] is None
    assert found["protocol"]["images"] == found["protocol"]["layouts"] == 7
    assert "segmenter" in found["protocol"]["segmenter"]
    assert not list(tmp_path.glob("judges")), "the judge beside the dataset was there already"


def test_layouts_painted_for_others_follow_them_less(judged: Path, tmp_path: Path) -> None:
    """Real images of other layouts: as like real ones as can be, but not what was asked for; and they differ."""
    _samples(tmp_path / "samples", judged, 3, lambda held, i, number: _other(held, i, number + 1))
    found = score.run(_job(judged), tmp_path, judged)
    assert found["miou"]["value"] < 0.8 * found["miou"]["ceiling"]
    assert found["frechet"]["value"] == pytest.approx(found["frechet"]["floor"])
    assert found["frechet"]["std"] == pytest.approx(0, abs=1e-7)
    assert found["diversity"]["value"] == pytest.approx(found["diversity"]["between_layouts"], rel=0.5)
    assert found["diversity"]["pixel_rms"] > 5


def test_mean_colours_score_as_their_baseline(judged: Path, tmp_path: Path) -> None:
    train = Pairs(Dataset.open(judged), "train", (SIZE, SIZE))
    colours = score.mean_colours(train)
    _samples(tmp_path / "samples", judged, 1, lambda held, i, number: colours[held.label(i)])
    found = score.run(_job(judged), tmp_path, judged)
    assert found["miou"]["value"] == found["miou"]["mean_colour"]
    assert found["miou"]["value"] != found["miou"]["ceiling"]
    for distance in (found["frechet"], found["kid"]):
        assert distance["value"] == pytest.approx(distance["mean_colour"])
        assert distance["value"] > distance["floor"]


def test_scores_repeat(judged: Path, packed: Path, tmp_path: Path) -> None:
    """Also with a judge trained anew: nothing depends on where it came from."""
    fresh = Path(shutil.copytree(packed, tmp_path / "city"))
    _samples(tmp_path / "samples", judged, 2, _other)
    assert score.run(_job(judged), tmp_path, judged) == score.run(_job(fresh), tmp_path, fresh)


def test_reference_of_the_painted_layouts(judged: Path, tmp_path: Path) -> None:
    _samples(tmp_path / "samples", judged, 1, _real)
    found = score.run(_job(judged, frechet={"reference": "held_out"}), tmp_path, judged)["frechet"]
    assert found["value"] == pytest.approx(0, abs=1e-6)
    assert found["floor"] > 0.001
    assert found["reference"] == "7 real held_out images"


def test_judging_at_another_size(judged: Path, tmp_path: Path) -> None:
    _samples(tmp_path / "samples", judged, 1, _real)
    settings = {**SEGMENTER, "size": [16, 24], "steps": 5}
    found = score.run(_job(judged, segmenter=settings), tmp_path, judged)
    assert found["protocol"]["size"] == [16, 24]
    assert found["miou"]["value"] == found["miou"]["ceiling"]
    with pytest.raises(UserError, match="multiples of 4"):
        score.run(_job(judged, segmenter={**SEGMENTER, "size": [16, 18]}), tmp_path, judged)


def test_judge_is_trained_once_and_again_when_settings_or_data_change(packed: Path, tmp_path: Path) -> None:
    pairs = Pairs(Dataset.open(packed), "train", (SIZE, SIZE))
    settings = SegmenterSettings.model_validate({**SEGMENTER, "steps": 3})
    cpu = torch.device("cpu")
    model, name = judge(pairs, settings, [tmp_path], cpu)
    weights = tmp_path / name / "model.safetensors"
    inode = weights.stat().st_ino
    again, same = judge(pairs, settings, [tmp_path], cpu)
    assert (same, weights.stat().st_ino) == (name, inode)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert judge(pairs, settings.model_copy(update={"seed": 1}), [tmp_path], cpu)[1] != name
    assert judge(pairs.at_most(20), settings, [tmp_path], cpu)[1] != name


def test_mean_colours_by_hand(packed: Path) -> None:
    pairs = Pairs(Dataset.open(packed), "train", (SIZE, SIZE)).at_most(3)
    images, labels = pairs.images(range(3)).astype(float), pairs.labels(range(3))
    found = score.mean_colours(pairs)
    for c in np.unique(labels):
        assert np.abs(found[c] - images[labels == c].mean(axis=0)).max() <= 0.5
    assert np.abs(found[255] - images.reshape(-1, 3).mean(axis=0)).max() <= 0.5


def test_ignored_pixels_teach_nothing(city: Path) -> None:
    pairs = Pairs(Dataset.open(city), "train", (SIZE, SIZE))
    pairs.ignore_id = 0
    _, labels = batch(pairs, [0, 1], torch.device("cpu"))
    sky = torch.from_numpy(pairs.labels([0, 1])) == 0
    assert sky.any()
    assert (labels[sky] == IGNORED).all()
    assert (labels[~sky] > 0).all()


def test_loss_is_the_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6)), torch.rand(4) + 0.5
    labels[0, :3] = IGNORED
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORED)
    assert torch.allclose(weighted_loss(logits, labels, weights), expected)
    assert float(weighted_loss(logits, torch.full_like(labels, IGNORED), weights)) == 0


def test_refuses_samples_of_another_dataset_and_runs_without_samples(judged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        score.run(_job(judged), tmp_path, judged)
    _samples(tmp_path / "samples", judged, 1, _real)
    manifest = json.loads((tmp_path / "samples" / "manifest.json").read_text())
    for image in manifest["images"]:
        image["key"] = "x" + image["key"]
    (tmp_path / "samples" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="generated for another dataset"):
        score.run(_job(judged), tmp_path, judged)
