"""Flux's mathematics against independent computations, diffusers' own helpers among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from scipy.stats import norm
from tiny_models import randomise

from semiocity.models import flux, flux_cost, flux_layout, flux_names

TINY: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    made = FluxTransformer2DModel(**TINY)
    randomise(made, 0, 0.1)
    yield made


def test_tokens_and_positions_are_those_of_diffusers() -> None:
    latent = torch.randn(2, 4, 6, 10)
    tokens = flux.pack(latent)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latent, 2, 4, 6, 10))
    assert torch.equal(flux.unpack(tokens, 6, 10), latent)
    assert torch.equal(FluxPipeline._unpack_latents(tokens, 48, 80, 8), latent)
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(flux.image_ids(6, 10), ids)
    assert flux.text_ids(7).tolist() == [[0.0, 0.0, 0.0]] * 7


def test_latents_are_scaled_and_drawn_as_the_vae_says() -> None:
    moments, noise = torch.randn(3, 8, 2, 4) * 4, torch.randn(3, 4, 2, 4)
    posterior = DiagonalGaussianDistribution(moments)
    assert torch.allclose(flux.draw_latent(moments, noise), posterior.mean + posterior.std * noise)
    assert flux.draw_latent(torch.full((1, 2, 1, 1), 1e9), torch.ones(1, 1, 1, 1)).isfinite().all()
    scaled = flux.scale_latent(moments, 0.3611, 0.1159)
    assert torch.allclose(scaled, 0.3611 * (moments - 0.1159))
    assert torch.allclose(flux.unscale_latent(scaled, 0.3611, 0.1159), moments, atol=1e-5)


def test_shift_is_linear_in_tokens() -> None:
    shift = flux.Shift()
    for tokens in (256, 1024, 4096, 777):
        assert shift.mu(tokens) == pytest.approx(calculate_shift(tokens))
    assert (shift.mu(256), shift.mu(4096)) == pytest.approx((0.5, 1.15))
    assert shift.mu(1024) == pytest.approx(0.63, abs=1e-9)
    assert flux.Shift(dynamic=False, factor=3.0).mu(1024) == math.log(3)


def test_times_follow_the_shifted_logit_normal() -> None:
    share = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001
    t = flux.logit_normal(share)
    assert np.allclose(t.numpy(), 1 / (1 + np.exp(-norm.ppf(share.numpy()))))
    mu = flux.Shift().mu(1024)
    shifted = flux.shift_time(t, mu)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert np.allclose(shifted.numpy(), scheduler.time_shift(mu, 1.0, t.numpy()))
    # Shifting a logit-normal by μ moves its logit by μ: quantiles stay quantiles.
    assert torch.allclose(torch.logit(shifted), torch.logit(t) + mu)
    assert flux.logit_normal(torch.tensor([0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize(("tokens", "steps"), [(1024, 28), (256, 4)])
def test_sampling_times_are_the_pipelines(tokens: int, steps: int) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    mu = calculate_shift(tokens)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert torch.allclose(flux.sampling_times(steps, mu).float(), scheduler.sigmas, atol=1e-6)


def test_flow_is_the_derivative_of_the_path() -> None:
    x, noise = torch.randn(2, 4, 2, 2).double(), torch.randn(2, 4, 2, 2).double()
    t, step = torch.tensor([0.2, 0.7]).double(), 1e-6
    change = (flux.interpolate(x, noise, t + step) - flux.interpolate(x, noise, t - step)) / (2 * step)
    assert torch.allclose(change, flux.flow(x, noise), atol=1e-8)
    assert torch.equal(flux.interpolate(x, noise, torch.zeros(2).double()), x)
    assert torch.equal(flux.interpolate(x, noise, torch.ones(2).double()), noise)
    assert flux.matching_loss(x, noise).tolist() == pytest.approx(
        [float(np.mean((x[i].numpy() - noise[i].numpy()) ** 2)) for i in (0, 1)]
    )


def test_dropped_prompts_are_the_empty_one() -> None:
    prompts, empty = torch.randn(3, 5, 2), torch.zeros(1, 5, 2)
    found = flux.drop_prompts(prompts, empty, torch.tensor([False, True, False]))
    assert torch.equal(found[1], empty[0])
    assert torch.equal(found[::2], prompts[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_sees_the_time_that_samples_are_mixed_at(model: Any, dtype: torch.dtype) -> None:
    t = torch.tensor([0.1234567, 0.7654321, 0.9991])
    seen: list[torch.Tensor] = []
    cast = FluxTransformer2DModel(**TINY).to(dtype)
    cast.load_state_dict(model.state_dict())
    hook = cast.time_text_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = torch.randn(3, 4, 4, 4), torch.randn(3, 7, 24), torch.randn(3, 12)
    with torch.no_grad():
        flux.velocity(cast, batch[0], flux.seen_time(t, dtype), batch[1], batch[2], 1.0, dtype)
    hook.remove()
    assert torch.equal(seen[0].float(), flux.seen_time(t, dtype) * 1000)
    assert torch.allclose(flux.seen_time(t, dtype), t, rtol=2**-8 if dtype is torch.bfloat16 else 1e-6)


def test_recomputed_blocks_give_the_same_gradients(model: Any) -> None:
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.8]), torch.randn(2, 7, 24), torch.randn(2, 12), 1.0
    runs: list[int] = []
    first = model.transformer_blocks[0]
    hook = first.norm1.register_forward_pre_hook(lambda *_: runs.append(1))
    gradients = []
    plain = [block.forward for block in (*model.transformer_blocks, *model.single_transformer_blocks)]
    for blocks in (0, None, 1):
        flux.recompute_blocks(model, blocks)
        model.zero_grad()
        flux.velocity(model, *inputs, torch.float32).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        for block, forward in zip((*model.transformer_blocks, *model.single_transformer_blocks), plain):
            block.forward = forward
    hook.remove()
    assert len(runs) == 1 + 2 + 2
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other))


def test_euler_integrates_a_straight_flow_exactly() -> None:
    data, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)

    def straight(**inputs: Any) -> tuple[torch.Tensor]:
        return (flux.pack(noise - data),)

    found = flux.sample_euler(
        straight,
        noise,
        torch.zeros(1, 2, 3),
        torch.zeros(1, 3),
        steps=3,
        shift=flux.Shift(),
        guidance=None,
        dtype=torch.float32,
    )
    assert torch.allclose(found, data, atol=1e-5)


# -- names, layout, cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [True, False])
def test_names_and_shapes_come_from_the_config_alone(guidance: bool) -> None:
    with torch.device("meta"):
        made = FluxTransformer2DModel(**{**TINY, "guidance_embeds": guidance})
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert flux_names.parameters(dict(made.config)) == shapes
    linear = {name for name, module in made.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(flux_names.linear_layers(dict(made.config))) == linear


def test_flux_dev_has_its_published_size() -> None:
    assert flux_names.count(DEV) == 11_901_408_320


def test_original_layout_round_trips_through_diffusers() -> None:
    """Widths as diffusers' converter wants them, every matrix a single column: small, and every row is its own."""
    config = {**DEV, "num_layers": 2, "num_single_layers": 2}
    torch.manual_seed(0)
    state = {
        name: torch.randn(shape[0], 1) if len(shape) == 2 else torch.randn(shape)
        for name, shape in flux_names.parameters(config).items()
    }
    original = flux_layout.to_original(state)
    assert original["single_blocks.1.linear1.weight"].shape == (7 * 3072, 1)
    back: Any = convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    outputs = {name: shape[0] for name, shape in flux_names.linear_layers(config).items()}
    ours = flux_layout.from_original({f"model.diffusion_model.{n}": t for n, t in original.items()}, outputs)
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state)
    with pytest.raises(KeyError, match="mystery has no place"):
        flux_layout.to_original({**state, "mystery": torch.zeros(1)})
    with pytest.raises(KeyError):
        flux_layout.from_original({"double_blocks.0.img_mod.lin.weight": torch.zeros(1)}, outputs)


def kohya(missing: tuple[str, ...] = ()) -> tuple[dict[str, flux_layout.Adapter], dict[str, torch.Tensor]]:
    """Random adapters of rank 3 and alpha 6 in the blocks of a model as wide as the real one, and what is made of them.

    diffusers' converter of kohya's files knows these widths only, and no layers outside of blocks.
    """
    config = {**DEV, "num_layers": 1, "num_single_layers": 1}
    linear = flux_names.linear_layers(config)
    torch.manual_seed(0)
    pairs = {
        name: flux_layout.Adapter(torch.randn(3, shape[1]), torch.randn(shape[0], 3))
        for name, shape in linear.items()
        if "blocks." in name and not name.endswith(missing or ("nothing",))
    }
    made = flux_layout.adapters_to_original(pairs, {name: shape[0] for name, shape in linear.items()}, 6.0, 1, 1)
    return pairs, made


def update(down: torch.Tensor, up: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """What an adapter makes of a fixed input: products of whole matrices would be large."""
    x = torch.linspace(-1, 1, down.shape[1])
    return up @ (down @ x) * scale


def test_adapters_are_the_same_update_under_kohyas_names() -> None:
    pairs, made = kohya()
    assert made["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (9, 3072)
    back = _convert_kohya_flux_lora_to_diffusers(dict(made))
    for name, pair in pairs.items():
        found = update(back[f"transformer.{name}.lora_A.weight"], back[f"transformer.{name}.lora_B.weight"])
        assert torch.allclose(found, update(*pair, 6.0 / 3), rtol=1e-3, atol=1e-2), name


def test_adapters_of_a_part_of_a_matrix_leave_the_rest_alone() -> None:
    pairs, made = kohya(missing=("attn.to_q", "attn.to_k"))
    key = "lora_unet_single_blocks_0_linear1"
    down, up = made[f"{key}.lora_down.weight"], made[f"{key}.lora_up.weight"]
    found = update(down, up, float(made[f"{key}.alpha"]) / len(down))
    assert found[: 2 * 3072].abs().max() == 0
    value = update(*pairs["single_transformer_blocks.0.attn.to_v"], 6.0 / 3)
    assert torch.allclose(found[2 * 3072 : 3 * 3072], value, rtol=1e-3, atol=1e-2)


def test_costs_are_those_that_were_measured() -> None:
    """Figures of FlopCounterMode on the real architectures (docs/flux.md)."""
    for side, both, recomputed in ((512, 64.5, 86.0), (768, 125.8, 167.7), (1024, 223.1, 297.5)):
        tokens = (side // 16) ** 2
        assert flux_cost.training_flops(DEV, tokens, 512) / 1e12 == pytest.approx(both, rel=2e-3)
        assert flux_cost.training_flops(DEV, tokens, 512, recompute=True) / 1e12 == pytest.approx(recomputed, rel=2e-3)
    for side, measured in ((256, 0.272949), (512, 1.117564), (768, 2.611155), (1024, 4.882573)):
        assert flux_cost.vae_flops(side, side) / 1e12 == pytest.approx(measured, rel=0.01)
    assert flux_cost.text_flops(512) / 1e12 == pytest.approx(4.844723, rel=0.01)


def test_caching_is_cheaper_when_samples_come_often_enough() -> None:
    size, flops = flux_cost.latent_bytes(1024, 1024, 8, 16, 2), flux_cost.vae_flops(1024, 1024)
    assert size == 128 * 128 * 32 * 2
    once, often = (flux_cost.choice(size, flops, 10**6, samples) for samples in (10**6, 10**7))
    assert (once.cached, often.cached) == (False, True)
    assert often.cached_gb == pytest.approx(1048.6, rel=1e-3)
    line = flux_cost.choice_line("latents", "fly", often)
    assert 'model.latents = "column" would be cheaper' in line
    assert "as it is" in flux_cost.choice_line("latents", "column", often)


def test_names_are_chosen_by_pattern() -> None:
    names = ["a.attn.to_q", "a.attn.to_k", "b.attn.to_q", "to_q"]
    assert flux_names.targets(names, ["attn.to_q"]) == ["a.attn.to_q", "b.attn.to_q"]
    assert flux_names.targets(names, ["a.*"]) == names[:2]
    assert flux_names.targets(names, ["o_q"]) == []
    assert flux_names.chosen(names, ["*to_q"], ["b.*"]) == ["a.attn.to_q", "to_q"]
    assert flux_names.block_of("single_transformer_blocks.12.attn.to_q.weight") == "single_transformer_blocks.12"
    assert flux_names.block_of("x_embedder.weight") == "x_embedder"
