"""The task sdm: layouts, randomness, what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SDM, sdm
from train_ranks import job_of

from semiocity.data.loader import own_room
from semiocity.data.order import Batch
from semiocity.errors import UserError
from semiocity.train.noise import generator, normal
from semiocity.train.tasks.base import DatasetFacts
from semiocity.train.tasks.sdm import SDMTask, decode_label, edges, load_export, one_hot

FACTS = DatasetFacts("tiny", "digest", ("sky", "road", "tree"), ((0, 0, 255), (90, 90, 90), (0, 255, 0)), 255)

SIZE = (16, 16)


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(out, "PNG")
    return out.getvalue()


def task(**model: Any) -> SDMTask:
    settings = sdm({"stage": 2, "precision": "fp32"}, model={**SDM, "edges": False, **model})
    return SDMTask(job_of(Path("x"), **settings), FACTS)


def batch(rows: list[int], step: int = 3, first: int = 0) -> Batch:
    count = len(rows)
    return Batch(step, np.array(rows), np.arange(first, first + count), np.ones(count, np.float32))


def decoded(count: int) -> list[dict[str, Any]]:
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    label = (np.arange(16 * 16).reshape(16, 16) % 3).astype(np.uint8)
    return [{"image": image, "label": label} for _ in range(count)]


def test_one_hot_of_ignored_pixels_is_zero() -> None:
    label = torch.tensor([[[0, 2], [255, 1]]], dtype=torch.uint8)
    layout = one_hot(label, 3)
    assert layout.shape == (1, 3, 2, 2)
    assert layout[0, :, 0, 0].tolist() == [1, 0, 0]
    assert layout[0, :, 1, 0].tolist() == [0, 0, 0]
    assert layout.sum() == 3


def test_edges_lie_on_both_sides_of_a_border() -> None:
    instance = torch.tensor([[[1, 1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 1]]], dtype=torch.int32)
    assert edges(instance)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert one_hot(torch.zeros(1, 3, 4, dtype=torch.uint8), 2, instance).shape == (1, 3, 3, 4)


def test_a_label_that_is_no_class_is_refused() -> None:
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    assert decode_label(png(ids), FACTS).tolist() == [[0, 1], [2, 255]]
    ids[0, 0] = 7
    with pytest.raises(UserError, match="label 7 is no class: tiny has classes 0 to 2, ignore id 255"):
        decode_label(png(ids), FACTS)
    assert decode_label(png(ids[:1]), FACTS._replace(ignore_id=7)).tolist() == [[255, 1]]


def test_rows_of_another_size_are_cut_and_resized_together() -> None:
    image, label = np.zeros((40, 80, 3), np.uint8), np.zeros((40, 80), np.uint8)
    image[:, 40:], label[:, 40:] = 255, 2
    arrays = task().decode({"image": png(image), "label": png(label)}, SIZE, own_room)
    assert arrays["image"].shape == (16, 16, 3)
    assert np.array_equal(arrays["label"] == 2, arrays["image"][..., 0] > 127)
    with pytest.raises(UserError, match=r"label map has shape \(4, 4\), the image \(40, 80\)"):
        task().decode({"image": png(image), "label": png(label[:4, :4])}, SIZE, own_room)
    with pytest.raises(UserError, match="has no label"):
        task().decode({"image": png(image), "label": None}, SIZE, own_room)


def test_randomness_belongs_to_step_and_row_alone() -> None:
    one = task()
    whole = one.collate(batch([5, 9, 2, 7]), decoded(4))
    again = one.collate(batch([2, 7], first=2), decoded(2))
    for name in ("t", "drop", "noise", "image"):
        assert torch.equal(whole[name][2:], again[name]), name
    other = one.collate(batch([2, 7], step=4), decoded(2))
    assert not torch.equal(other["noise"], again["noise"])
    assert not torch.equal(again["noise"][0], again["noise"][1])


def test_stratified_timesteps_cover_every_stretch() -> None:
    one = task(stratified_t=True)
    t = one.collate(batch(list(range(8))), decoded(8))["t"]
    assert (t * 8 // 1000).tolist() == list(range(8))
    half = one.collate(batch([6, 7], first=6), decoded(2))["t"]
    assert torch.equal(half, t[6:])


def test_draws_have_the_stated_distribution() -> None:
    one = task(label_dropout=0.3)
    tensors = one.collate(batch(list(range(2000))), decoded(2000))
    assert 0.25 < tensors["drop"].float().mean() < 0.35
    assert 450 < tensors["t"].float().mean() < 550
    assert (tensors["t"].min() >= 0, tensors["t"].max() < 1000) == (True, True)
    assert abs(float(tensors["noise"].mean())) < 0.01
    assert abs(float(tensors["noise"].std()) - 1) < 0.01
    flipped = (tensors["image"][:, 0, 0, 0] != decoded(1)[0]["image"][0, 0, 0]).float().mean()
    assert 0.45 < flipped < 0.55
    # Picture and layout are mirrored together.
    mirrored = tensors["image"][:, 0, 0, 0] != 0
    assert torch.equal(
        tensors["label"][mirrored], tensors["label"][~mirrored][:1].flip(2).expand(int(mirrored.sum()), 16, 16)
    )


def test_dropped_layouts_are_the_null_label() -> None:
    one = task(label_dropout=1.0)
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
        seen.append(layout)
        return torch.zeros(len(x), 6, 16, 16)

    one.loss("sdm", {"sdm": model}, one.collate(batch([1, 2]), decoded(2)), 0)  # type: ignore[dict-item]
    assert seen[0].abs().sum() == 0


def test_padding_rows_have_no_weight_in_the_loss() -> None:
    one = task(learn_sigma=False)
    (phase,) = one.phases()
    padded = batch([1, 2, 3, 3])._replace(weights=np.array([4 / 3, 4 / 3, 4 / 3, 0], np.float32))
    losses = [
        one.loss("sdm", phase.modules, one.collate(part, decoded(len(part.rows))), 0).total.item()
        for part in (padded, batch([1, 2, 3]))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_noise_streams_are_apart_and_never_change() -> None:
    draws = {
        tuple(generator(seed, step, row, stream).random(2))
        for seed in (0, 1)
        for step in (0, 1)
        for row in (0, 1)
        for stream in ("train", "sample", "step")
    }
    assert len(draws) == 24
    assert normal(1, 2, [3], (2,), "train").tolist() == [[-1.2031482458114624, -0.2057420313358307]]


def test_no_export_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported model here"):
        load_export(tmp_path)
