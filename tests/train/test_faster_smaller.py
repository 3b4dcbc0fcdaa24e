"""Blocks compiled, attention backends, and the frozen base of a LoRA in 8 bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from flux_data import flux
from safetensors.torch import load_file
from tiny import sdm
from torch import nn
from train_ranks import Ranks, train

from semiocity.errors import UserError
from semiocity.models import attention, attention_names
from semiocity.models.float8 import Float8Linear, restore, store, store_blocks
from semiocity.train import compiling
from semiocity.train.metrics import read_metrics


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


# -- 8 bits -----------------------------------------------------------------------------------------------------------


def test_stored_weights_are_near_and_take_a_quarter() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256) * torch.logspace(-6, 2, 64)[:, None]
    weight[3] = 0
    stored, scale = store(weight)
    assert stored.nbytes + scale.nbytes < 0.27 * weight.nbytes
    assert torch.equal(scale.bfloat16().float(), scale), "a power of two survives a cast of the whole module"
    error = (restore(stored, scale, torch.float32) - weight).abs()
    assert (error <= weight.abs() / 16 + weight.abs().amax(1, keepdim=True) * 2**-15).all()
    assert not error[3].any()


def test_a_stored_layer_passes_gradients_as_its_rounded_weights_would() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 16).requires_grad_(False)
    small = Float8Linear(layer)
    x, y = torch.randn(2, 5, 24, requires_grad=True), torch.randn(2, 5, 24)
    y.copy_(x.detach())
    y.requires_grad_()
    rounded = restore(small.get_buffer("stored"), small.get_buffer("scale"), torch.float32)
    one, other = small(x), nn.functional.linear(y, rounded, layer.bias)
    torch.testing.assert_close(one, other)
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert not list(small.state_dict().keys() - {"bias"}), "no checkpoint holds it"
    kept = small.to(torch.bfloat16)
    assert kept.stored.dtype == torch.uint8


def test_the_frozen_base_halves_and_lora_learns_as_before(
    ranks: Ranks, model: Path, town: Path, tmp_path: Path
) -> None:
    from diffusers import FluxTransformer2DModel

    loader: Any = FluxTransformer2DModel
    base = loader.from_pretrained(model / "transformer", dtype=torch.bfloat16).requires_grad_(False)
    blocks = nn.ModuleList([base.transformer_blocks, base.single_transformer_blocks])

    def held() -> int:
        return sum(t.nbytes for t in (*blocks.parameters(), *blocks.buffers()))

    before = held()
    assert store_blocks(base) > 20
    assert held() < 0.57 * before, "this one's rows are short, and each has a scale"

    found = {}
    for dtype in ("same", "float8_e4m3"):
        settings = flux("flux-lora", model, {"stage": 2, "precision": "bf16"}, {"base_dtype": dtype}, sample_every=3)
        run = tmp_path / dtype
        assert ranks.call(train, settings, run, town, 0, 0) == [True, True]
        found[dtype] = losses(run)
        assert load_file(run / "export" / "lora.safetensors")
    assert found["float8_e4m3"] != found["same"]
    assert found["float8_e4m3"] == pytest.approx(found["same"], rel=0.03)


# -- attention --------------------------------------------------------------------------------------------------------


def test_backends_are_diffusers_own() -> None:
    known = {backend.value for backend in AttentionBackendName}
    assert set(attention_names.MODULES) <= known
    for name in known - set(attention_names.MODULES):
        if name.startswith(("_native", "aiter")) and not name.endswith("_hub"):
            continue  # of other makers' devices
        with pytest.raises(ValueError, match=r"there are: native, _native_cudnn"):
            attention_names.check(name)


def test_unknown_and_missing_backends_are_refused(model: Path) -> None:
    for name, said in (("flsh", "no attention backend 'flsh'; there are: native"), ("sage", "'sage' has no backward")):
        with pytest.raises(UserError, match=f"attention: {said}"):
            from train_ranks import job_of

            job_of(Path("data/x"), **flux("flux-lora", model, {"stage": 2}, {"attention": name}))
    with pytest.raises(UserError, match=r'model.attention = "flash" needs a GPU'):
        attention.require("flash")


def test_another_backend_computes_the_same(ranks: Ranks, model: Path, town: Path, tmp_path: Path) -> None:
    for name in ("native", "_native_math"):
        settings = flux("flux-lora", model, {"stage": 2, "precision": "fp32"}, {"attention": name}, sample_every=0)
        assert ranks.call(train, settings | {"steps": 2}, tmp_path / name, town, 0, 0) == [True, True]
    assert losses(tmp_path / "_native_math") == pytest.approx(losses(tmp_path / "native"), rel=1e-5)


# -- compiled blocks --------------------------------------------------------------------------------------------------


def test_blocks_are_those_of_the_outermost_lists(model: Path) -> None:
    from diffusers import FluxTransformer2DModel

    loader: Any = FluxTransformer2DModel
    found = list(compiling.blocks(loader.from_pretrained(model / "transformer")))
    kinds = [type(block).__name__ for block in found]
    assert kinds == ["FluxTransformerBlock"] + ["FluxSingleTransformerBlock"] * 2
    with pytest.raises(UserError, match=r"no repeated blocks"):
        compiling.compile_blocks([nn.Linear(1, 1)])


def test_a_compiler_that_is_not_there_is_missed_before_anything_is_loaded(
    ranks: Ranks, city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        compiling.refuse_without_compiler()


def test_a_block_is_compiled_in_place_and_computes_the_same() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.SiLU()) for _ in range(2))
    model = nn.ModuleDict({"layers": layers})
    plain, names = list(layers), list(model.state_dict())
    x = torch.randn(4, 8, requires_grad=True)
    expected = plain[1](plain[0](x))
    (slope,) = torch.autograd.grad(expected.square().sum(), x)
    assert compiling.compile_blocks([model]) == 2
    assert list(model.state_dict()) == names
    assert all(block._compiled_call_impl is not None for block in layers)
    found = layers[1](layers[0](x))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], slope)


@pytest.mark.soak
def test_compiled_blocks_train_as_plain_ones(lone_rank: Ranks, model: Path, town: Path, tmp_path: Path) -> None:
    for how in ("none", "blocks"):
        own = {"recompute": "all", "rank": 2}
        settings = flux(
            "flux-lora", model, {"stage": 2, "precision": "fp32"}, own, sample_every=0, steps=2, compile=how
        )
        assert lone_rank.call(train, settings, tmp_path / how, town, 0, 0) == [True]
    assert losses(tmp_path / "blocks") == pytest.approx(losses(tmp_path / "none"), rel=1e-4)
    one, other = (load_file(tmp_path / how / "export" / "lora.safetensors") for how in ("none", "blocks"))
    assert one.keys() == other.keys()


@pytest.mark.soak
def test_compiled_sdm(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    plain = {"stage": 2, "precision": "fp32"}
    for how in ("none", "blocks"):
        assert ranks.call(train, sdm(plain, compile=how), tmp_path / how, city, 0, 0) == [True, True]
    assert losses(tmp_path / "blocks") == pytest.approx(losses(tmp_path / "none"), rel=1e-3)
