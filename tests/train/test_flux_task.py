"""Flux trained on two ranks: against plain torch, over a stop, and out into diffusers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from flux_data import cache, captioned_city, flux
from flux_pictures import distance, grid, painted
from PIL import Image
from safetensors.torch import load_file
from scipy.special import expit, ndtri
from tiny import checkpoint, differing, history
from tiny_flux import CHANNELS, TOKENS, save_flux
from train_ranks import Ranks, train

from semiocity.data.columns import Dataset
from semiocity.train.metrics import read_metrics
from semiocity.train.noise import generator

FP32 = {"stage": 2, "precision": "fp32"}
FLY = {"latents": "fly", "texts": "fly"}
ROWS = 8
"""Of `town`: a global batch is the whole epoch."""


def one_step(
    model: Path, dataset: Path, rate: float, factors: dict[str, float]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The first step in plain torch: loss over all rows, clipping, AdamW with eps 0.01. Loss and new weights."""
    pipeline = FluxPipeline.from_pretrained(model)
    view = Dataset.open(dataset).view(["base.image", "caption.text"], "train")
    losses, parameters = [], dict(pipeline.transformer.named_parameters())
    for row in range(ROWS):
        fields = view.read(row)
        picture = np.array(Image.open(io.BytesIO(fields["base.image"])).convert("RGB")).astype(np.float32)
        random = generator(0, 0, row)
        share, drop, flip = random.random(3)
        noise, draw = (
            torch.from_numpy(random.standard_normal((1, CHANNELS, 4, 4), dtype=np.float32)) for _ in range(2)
        )
        pixels = torch.from_numpy(picture[:, ::-1].copy() if flip < 0.5 else picture).permute(2, 0, 1)[None] / 127.5 - 1
        text = "" if drop < 0.2 else fields["caption.text"].decode()
        with torch.no_grad():
            posterior = pipeline.vae.encode(pixels).latent_dist
            prompt, pooled, text_ids = pipeline.encode_prompt(text, max_sequence_length=TOKENS)
        latent = (posterior.mean + posterior.std * draw - 0.1159) * 0.3611
        mu = 0.5 + (4 - 256) * (1.15 - 0.5) / (4096 - 256)
        t = torch.tensor([expit(ndtri(share) + mu)], dtype=torch.float32)
        mixed = (1 - t) * latent + t * noise
        predicted = pipeline.transformer(
            hidden_states=FluxPipeline._pack_latents(mixed, 1, CHANNELS, 4, 4),
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=t,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, 2, 2, "cpu", torch.float32),
            txt_ids=text_ids,
            guidance=torch.ones(1),
            return_dict=False,
        )[0]
        losses.append(
            torch.nn.functional.mse_loss(predicted, FluxPipeline._pack_latents(noise - latent, 1, CHANNELS, 4, 4))
        )
    loss = torch.stack(losses).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    groups = [
        {"params": [p], "lr": rate * next((f for start, f in factors.items() if name.startswith(start)), 1.0)}
        for name, p in parameters.items()
    ]
    torch.optim.AdamW(groups, eps=1e-2, weight_decay=0.0).step()
    return loss.item(), {name: p.detach() for name, p in parameters.items()}


def test_a_step_is_that_of_plain_torch(ranks: Ranks, model: Path, town: Path, tmp_path: Path) -> None:
    """Forward, loss, gradients over two ranks and two parts, clipping, rates by layer, and AdamW."""
    own = {
        **FLY,
        "stratified_t": False,
        "average": False,
        "rates": {"single_transformer_blocks.*": 0.25},
        "recompute": 2,
    }
    settings = flux("flux-full", model, FP32, own, steps=1, sample_every=0)
    settings |= {"optimizer": {"lr": 1e-2, "eps": 1e-2, "clip": 1.0}}
    assert ranks.call(train, settings, tmp_path / "run", town, 0, 0) == [True, True]
    loss, expected = one_step(model, town, 1e-2, {"single_transformer_blocks": 0.25})
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["loss"] == pytest.approx(loss, rel=1e-5)
    found = load_file(tmp_path / "run" / "export" / "transformer" / "diffusion_pytorch_model.safetensors")
    before = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == expected.keys()
    moved = max(float((expected[name] - before[name]).abs().max()) for name in expected)
    assert moved > 1e-3
    for name, weights in expected.items():
        assert torch.allclose(found[name], weights, atol=1e-3 * moved, rtol=1e-5), name


def resumed(ranks: Ranks, dataset: Path, folder: Path, settings: dict[str, Any], stop_at: int) -> Path:
    """Train undisturbed, and with a stop; nothing may differ. Returns the run that was stopped."""
    whole, halves = folder / "whole", folder / "halves"
    assert ranks.call(train, settings, whole, dataset, 0, 0) == [True, True]
    assert ranks.call(train, settings, halves, dataset, 1, stop_at) == [False, False]
    assert ranks.call(train, settings, halves, dataset, 0, 0) == [True, True]
    attempts = history(halves)
    assert [attempt["first_step"] for attempt in attempts] == [0, stop_at]
    states = checkpoint(whole, settings["steps"])
    assert states
    assert differing(states, checkpoint(halves, settings["steps"])) == []
    assert (whole / "metrics.jsonl").read_text() == (halves / "metrics.jsonl").read_text()
    exports = [sorted((run / "export").rglob("*.safetensors")) for run in (whole, halves)]
    for one, other in zip(*exports, strict=True):
        assert differing(load_file(one), load_file(other)) == []
    return halves


def test_full_goes_on_bit_by_bit_and_diffusers_paints_what_the_training_does(
    ranks: Ranks, model: Path, town: Path, tmp_path: Path
) -> None:
    prompts = ["a street", "a tree on the left"]
    own = {"sample_prompts": prompts, "sample_guidance": 2.0, "freeze": ["time_text_embed.*"]}
    settings = flux("flux-full", model, FP32, own, steps=4, sample_every=4, sample_images=2)
    run = resumed(ranks, town, tmp_path, settings, 3)
    kept = {name for file in checkpoint(run, 4).values() for name in file}
    assert kept
    before = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(run / "export" / "transformer" / "diffusion_pytorch_model.safetensors")
    frozen = {name for name in before if name.startswith("time_text_embed")}
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen

    pipeline = FluxPipeline.from_pretrained(run / "export")
    made = np.stack([painted(pipeline, prompt, place, steps=2, guidance=2.0) for place, prompt in enumerate(prompts)])
    assert distance(grid(run), made) <= 1
    assert distance(made[0], made[1]) > 3
    assert (run / "export" / "flux.safetensors").stat().st_size > 1000
    card = (run / "export" / "README.md").read_text()
    assert json.loads((run / "export" / "config.json").read_text())["dataset_digest"] in card
    assert "`LICENSE.md`" in card


@pytest.mark.parametrize("zero", [{"stage": 2, "precision": "bf16"}], ids=str)
def test_lora_goes_on_bit_by_bit_with_its_text_encoders(
    ranks: Ranks, model: Path, town: Path, tmp_path: Path, zero: dict[str, Any]
) -> None:
    own = {**FLY, "text_encoders": ["clip", "t5"], "dropout": 0.1}
    run = resumed(ranks, town, tmp_path, flux("flux-lora", model, zero, own, sample_every=0), 4)
    # The frozen weights are in no checkpoint: 16 bytes would be needed for each.
    size = sum(file.stat().st_size for file in (run / "checkpoints").glob("step-00000006/*.safetensors"))
    adapted = sum(t.numel() for t in load_file(run / "export" / "lora.safetensors").values())
    assert size < 1.3 * 12 * adapted + 50_000
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert set(state["frozen"]) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    pipeline: Any = FluxPipeline.from_pretrained(model)
    plain = painted(pipeline, "a street", 0, 2, 2.0)
    pipeline.load_lora_weights(run / "export", weight_name="lora.safetensors")
    scaling = pipeline.transformer.transformer_blocks[0].attn.to_q.scaling
    assert list(scaling.values()) == [8.0 / 4]
    assert (painted(pipeline, "a street", 0, 2, 2.0) != plain).any()


def overfitted(ranks: Ranks, folder: Path, dataset: Path, settings: dict[str, Any]) -> Sequence[float]:
    assert ranks.call(train, settings, folder, dataset, 0, 0) == [True, True]
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def test_eight_pictures_are_learnt(ranks: Ranks, model: Path, town: Path, tmp_path: Path) -> None:
    settings = flux("flux-full", model, FP32, {"prompt_dropout": 0.0}, steps=60, sample_every=0, checkpoint_every=60)
    settings |= {"optimizer": {"lr": 1e-2, "warmup_steps": 5}, "accumulation": 1, "data": {"size": 32, "cache_mb": 8}}
    losses = overfitted(ranks, tmp_path, town, settings)
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])


@pytest.mark.soak
@pytest.mark.parametrize("task", ["flux-full", "flux-lora"])
def test_eight_pictures_are_learnt_visibly(ranks: Ranks, tmp_path: Path, task: str) -> None:
    """Through the real text encoder and VAE classes; the last grid shows real pictures beside learnt ones."""
    model = save_flux(tmp_path / "flux", blocks=(2, 4), heads=4)
    dataset = cache(captioned_city(tmp_path / "city", ROWS), model)
    own = {"prompt_dropout": 0.0, **({"rank": 32, "targets": ["*"], "average": True} if task == "flux-lora" else {})}
    settings = flux(task, model, FP32, own, steps=3000, sample_every=1000, sample_images=8, checkpoint_every=1000)
    settings |= {"optimizer": {"lr": 3e-3, "warmup_steps": 50, "schedule": "cosine"}, "accumulation": 1}
    settings |= {"data": {"size": 32, "cache_mb": 8}, "ema": {"decay": 0.99}}
    losses = overfitted(ranks, tmp_path / "run", dataset, settings)
    assert np.mean(losses[-100:]) < 0.3 * np.mean(losses[:20])


@pytest.mark.soak
@pytest.mark.parametrize("task", ["flux-full", "flux-lora"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_stage_goes_on_bit_by_bit(
    ranks: Ranks, model: Path, town: Path, tmp_path: Path, task: str, stage: int, precision: str
) -> None:
    settings = flux(task, model, {"stage": stage, "precision": precision})
    for stop_at in (1, 3, 5):
        resumed(ranks, town, tmp_path / str(stop_at), settings, stop_at)
