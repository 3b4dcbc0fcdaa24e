"""Speeds: FLOPs by formula against torch's counter, peaks by name, and what the meter makes of steps and pauses."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch.utils.flop_counter import FlopCounterMode

from semiocity.models import flux, flux_names, sdm_cost
from semiocity.models.flux_step_cost import step_flops
from semiocity.models.sdm import PAPER, SDM, SDMConfig
from semiocity.train import throughput
from semiocity.train.gpu_peaks import peak_tflops
from semiocity.train.throughput import Meter

FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def counted_sdm(config: SDMConfig, height: int, width: int) -> int:
    """By torch, on the meta device."""
    with torch.device("meta"):
        model = SDM(config)
        x, t = torch.empty(1, 3, height, width), torch.empty(1)
        layout = torch.empty(1, config.label_channels, height, width)
        with FlopCounterMode(display=False) as counter:
            model(x, t, layout).sum().backward()
    return counter.get_total_flops()


def test_sdm_formula_is_what_torch_counts(chance: random.Random) -> None:
    for _ in range(4):
        levels = chance.randint(1, 3)
        patch = chance.choice([1, 2])
        size = patch * 2 ** (levels - 1) * chance.choice([4, 8])
        sides = [size // (patch * 2**level) for level in range(levels)]
        config = SDMConfig(
            label_channels=chance.randint(1, 5),
            image_size=size,
            channels=16,
            mult=tuple(chance.choice([1, 1.5, 2]) for _ in range(levels)),
            res_blocks=chance.randint(1, 2),
            attention_resolutions=tuple(chance.sample(sides, chance.randint(0, levels))),
            head_channels=8,
            spade_hidden=chance.choice([4, 12]),
            learn_sigma=chance.random() < 0.5,
            resblock_updown=chance.random() < 0.5,
            patch=patch,
        )
        wide = size * chance.choice([1, 2])
        assert sdm_cost.training_flops(config, size, wide) == counted_sdm(config, size, wide), config


def test_the_papers_model_costs_what_its_layers_do() -> None:
    assert sdm_cost.training_flops(PAPER, 256, 256) == counted_sdm(PAPER, 256, 256)


def counted_flux(model: Any, side: int, words: int) -> int:
    x, t = torch.empty(1, 4, side, side), torch.empty(1)
    prompt, pooled = torch.empty(1, words, FLUX["joint_attention_dim"]), torch.empty(1, FLUX["pooled_projection_dim"])
    with FlopCounterMode(display=False) as counter:
        flux.velocity(model, x, t, prompt, pooled, 1.0, torch.float32).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "patterns",
    [
        ("*",),
        ("single_transformer_blocks.*",),
        ("transformer_blocks.1.attn.*",),
        ("single_transformer_blocks.2.attn.to_v.weight", "proj_out.*"),
        ("transformer_blocks.0.norm1.linear.bias",),
        ("x_embedder.*",),
    ],
    ids=lambda p: p[0],
)
def test_flux_formula_is_what_torch_counts(patterns: tuple[str, ...]) -> None:
    names = flux_names.chosen(flux_names.parameters(FLUX), patterns, [])
    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(**FLUX)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        counted = counted_flux(model, 8, 5)
    assert step_flops(FLUX, 16, 5, trained=names) == counted


@pytest.mark.parametrize("targets", [("attn.to_q", "ff.net.2"), ("single_transformer_blocks.1.proj_out",)], ids=str)
def test_flux_formula_counts_adapters(targets: tuple[str, ...]) -> None:
    layers = flux_names.targets(flux_names.linear_layers(FLUX), targets)
    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(**FLUX)
        model = inject_adapter_in_model(LoraConfig(r=3, target_modules=layers), model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        counted = counted_flux(model, 8, 5)
    assert step_flops(FLUX, 16, 5, adapters=layers, rank=3) == counted


def test_flux_dev_costs_what_was_measured_on_it() -> None:
    """64.5 TFLOP at 512² and 223.1 at 1024², forward and backward."""
    dev = {**FLUX, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128}
    dev |= {"num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
    trained = list(flux_names.parameters(dev))
    assert step_flops(dev, 32 * 32, 512, trained) / 1e12 == pytest.approx(64.5, rel=0.01)
    assert step_flops(dev, 64 * 64, 512, trained) / 1e12 == pytest.approx(223.1, rel=0.01)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
        ("a100", 312.0),  # as SLURM's gres have it
        ("rtx_a6000", 154.8),
        ("rtx3090", 71.0),
        ("a30", 165.0),
        ("v100", 125.0),
        ("a100_1g.5gb", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_the_meter_leaves_pauses_out_and_takes_the_slowest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    meter = Meter(ranks=2, global_batch=8, peak_tflops=10.0)
    for _ in range(4):
        now[0] += 2.0
        meter.step(waited_s=0.1, flops=5e12)
    with meter.paused(), meter.paused():
        now[0] += 8.0
    assert meter.own()[0] == pytest.approx(0.4)
    found = meter.look([(0.4, 1.0), (2.0, 3.0)])
    assert found["speed/samples_per_s"] == pytest.approx(4.0)
    assert found["speed/step_s"] == pytest.approx(2.0)
    assert found["speed/data_wait_share"] == pytest.approx(0.25)
    assert found["speed/pause_share"] == pytest.approx(0.5)
    assert found["memory/gb"] == 3.0
    # 4 steps of 8 samples of 5 TFLOP in 8 s on 2 GPUs.
    assert found["speed/tflops_per_gpu"] == pytest.approx(10.0)
    assert found["speed/mfu"] == pytest.approx(1.0)


def test_without_flops_or_peak_there_is_no_mfu() -> None:
    meter = Meter(1, 8)
    meter.step(0.0, 1e12)
    assert "speed/mfu" not in (found := meter.look([(0.0, 1.0)])) and "speed/tflops_per_gpu" in found
    meter.step(0.0, None)
    meter.step(0.0, 1e12)
    assert "speed/tflops_per_gpu" not in meter.look([(0.0, 1.0)])
