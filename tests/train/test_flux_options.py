"""Wrong Flux jobs are refused before anything is loaded or queued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flux_data import add_column, cache, captioned_city, flux
from tiny_flux import TOKENS, save_flux
from train_ranks import job_of

from semiocity.config import load_toml, write_json
from semiocity.errors import UserError
from semiocity.launch import jobs
from semiocity.train.options import TrainJob, identity

JOBS = Path(__file__).parents[2] / "jobs"
FP32 = {"stage": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="module")
def cached(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache(captioned_city(tmp_path_factory.mktemp("data") / "city", 9), model)


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        (
            "flux-lora",
            {"targets": ["attn.to_z"]},
            r"targets: 'attn.to_z' matches no linear layer; there are .*attn.to_q",
        ),
        ("flux-lora", {"text_encoders": ["clip"]}, 'the cached column cannot be used; set texts = "fly"'),
        ("flux-lora", {"ranks": 4}, "ranks: unknown key; did you mean rank"),
        ("flux-full", {"train": ["blocks.*"]}, r"train: 'blocks.\*' matches no parameter; there are .*proj_out.bias"),
        ("flux-full", {"rates": {"*.nothing": 0.5}}, "rates: '\\*.nothing' matches no parameter"),
        ("flux-full", {"freeze": ["*"]}, "leave nothing to train"),
        ("flux-full", {"pretrained": "/nowhere"}, r"model\.pretrained: /nowhere: no such folder"),
    ],
)
def test_options_that_do_not_fit_are_named(model: Path, task: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        job_of(Path("x"), **flux(task, model, FP32, wrong))


def test_an_average_that_is_not_kept_has_no_decay(model: Path) -> None:
    with pytest.raises(UserError, match=r"ema would not be used: .*set model.average = true"):
        job_of(Path("x"), **flux("flux-lora", model, FP32, ema={"decay": 0.5}))
    assert job_of(Path("x"), **flux("flux-lora", model, FP32, {"average": True}, ema={"decay": 0.5})).ema.decay == 0.5


def test_a_size_that_is_no_whole_number_of_tokens_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=r"data\.size: 40×40: 40 is no multiple of 16"):
        job_of(Path("x"), **flux("flux-full", model, FP32, data={"size": 40}))


def submit(dataset: Path, settings: dict[str, Any], tmp_path: Path) -> jobs.Work:
    """What `semiocity train` does before it queues."""
    file = tmp_path / "job.toml"
    lines = [f"dataset = {str(dataset)!r}"]
    for key, value in settings.items():
        lines.append(f"{key} = {_toml(value)}")
    file.write_text("\n".join(lines))
    return jobs.train(file, [])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(inner)}' for key, inner in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("file", sorted(JOBS.glob("*train-flux*.toml")), ids=lambda file: file.stem)
def test_shipped_jobs_are_valid(model: Path, file: Path) -> None:
    job = load_toml(file, TrainJob, [f"model.pretrained={model}"])
    ranks = job.resources.nodes * job.resources.ranks_per_node
    assert job.sample_images % ranks in (0, job.sample_images)
    assert job.sample_images >= len(job.options.sample_prompts)  # type: ignore[attr-defined]


def test_a_fitting_job_is_resolved_and_its_weights_are_mounted(cached: Path, model: Path, tmp_path: Path) -> None:
    work = submit(cached, flux("flux-lora", model, FP32, data={"size": 32}), tmp_path)
    assert work.binds == (model,)
    assert set(work.columns) == {"base", "latent", "text"}


def test_cached_columns_must_come_from_the_same_weights_and_sizes(cached: Path, model: Path, tmp_path: Path) -> None:
    other = save_flux(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match="column latent was encoded by another VAE"):
        submit(cached, flux("flux-full", other, FP32, data={"size": 32}), tmp_path)
    with pytest.raises(UserError, match="column text was encoded by other text encoders"):
        submit(cached, flux("flux-full", other, FP32, {"latents": "fly"}, data={"size": 32}), tmp_path)
    with pytest.raises(UserError, match="encoded at 32×32, this training wants 48×48"):
        submit(cached, flux("flux-full", model, FP32, data={"size": 48}), tmp_path)
    with pytest.raises(UserError, match="has no mirrored latents"):
        submit(cached, flux("flux-full", model, FP32, data={"size": 32, "flip": True}), tmp_path)
    with pytest.raises(UserError, match=f"text_tokens is 8, but column text was made with {TOKENS}"):
        submit(cached, flux("flux-full", model, FP32, {"text_tokens": 8}, data={"size": 32}), tmp_path)
    incomplete = Path(shutil.copytree(model, tmp_path / "incomplete"))
    shutil.rmtree(incomplete / "scheduler")
    with pytest.raises(UserError, match="no folder scheduler"):
        submit(cached, flux("flux-full", incomplete, FP32, data={"size": 32}), tmp_path)


def test_a_grid_that_would_leave_out_prompts_is_refused(cached: Path, model: Path, tmp_path: Path) -> None:
    settings = flux("flux-lora", model, FP32, {"sample_prompts": ["a", "b", "c"]}, data={"size": 32})
    with pytest.raises(
        UserError, match=r"sample_images: 2 would leave out some of the 3 prompts .* set it to 3 or more"
    ):
        submit(cached, settings | {"sample_images": 2}, tmp_path)
    submit(cached, settings | {"sample_images": 2, "sample_every": 0}, tmp_path)
    submit(cached, settings | {"sample_images": 3}, tmp_path)


def test_a_missing_column_is_named_with_what_makes_it(model: Path, tmp_path: Path) -> None:
    bare = captioned_city(tmp_path / "city", 3)
    with pytest.raises(UserError, match="latent"):
        submit(bare, flux("flux-full", model, FP32, data={"size": 32}), tmp_path)
    work = submit(bare, flux("flux-full", model, FP32, {"latents": "fly", "texts": "fly"}, data={"size": 32}), tmp_path)
    assert set(work.columns) == {"base", "caption"}


def test_a_column_of_another_stage_is_no_cache(cached: Path, model: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(cached, tmp_path / "city"))
    add_column(dataset, "hash", hasher="dct")
    settings = flux("flux-full", model, FP32, data={"size": 32, "fields": {"latent": "hash.record"}})
    with pytest.raises(UserError, match="column hash was not made by `semiocity latent`"):
        submit(dataset, settings, tmp_path)


def test_weights_are_known_by_their_contents(model: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    one, other = (identity(job_of(Path("x"), **flux("flux-lora", folder, FP32))) for folder in (model, moved))
    assert one == other
    config = json.loads((moved / "transformer" / "config.json").read_text())
    write_json(moved / "transformer" / "config.json", config | {"num_layers": 3})
    assert identity(job_of(Path("x"), **flux("flux-lora", moved, FP32))) == one, "the digest is what tells"
