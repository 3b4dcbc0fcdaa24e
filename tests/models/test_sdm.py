"""The SDM is the paper's model (exact parameter counts) and keeps the promises of its docstrings."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from semiocity.models.sdm import PAPER, SDM, SDMConfig
from semiocity.models.unet_blocks import SpadeNorm

GOLDEN = Path(__file__).parents[1] / "golden" / "sdm.json"
TINY = SDMConfig(
    label_channels=5,
    image_size=16,
    channels=8,
    mult=(1, 2),
    res_blocks=1,
    attention_resolutions=(8,),
    head_channels=8,
    spade_hidden=4,
)


def parameters(config: SDMConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SDM(config).parameters())


def fill(model: SDM, seed: int = 0) -> SDM:
    """Give every parameter numbers that depend on `seed` alone, not on torch's version or initialisation."""
    generator = np.random.Generator(np.random.Philox(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(generator.normal(0, 0.2, tuple(parameter.shape)).astype(np.float32)))
    return model


def inputs(config: SDMConfig, batch: int = 2, size: int = 16, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = np.random.Generator(np.random.Philox(seed))
    x = torch.from_numpy(generator.normal(size=(batch, 3, size, size)).astype(np.float32))
    t = torch.from_numpy(generator.integers(0, 1000, batch))
    labels = torch.from_numpy(generator.integers(0, config.label_channels, (batch, size, size)))
    return x, t, F.one_hot(labels, config.label_channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 653_926_918),
        ({"learn_sigma": False}, 653_920_003),
        ({"label_channels": 36}, 653_984_518),
        ({"label_channels": 151}, 660_608_518),
    ],
    ids=["cityscapes", "epsilon only", "with edge map", "ade20k"],
)
def test_paper_parameter_counts(changes: dict, expected: int) -> None:
    assert parameters(dataclasses.replace(PAPER, **changes)) == expected


def test_patch_and_checkpointing_leave_the_paper_model_alone() -> None:
    assert PAPER.patch == 1 and not PAPER.checkpoint
    assert parameters(dataclasses.replace(PAPER, checkpoint=True)) == parameters(PAPER)


def test_a_megapixel_runs_with_a_narrow_stem() -> None:
    config = SDMConfig(label_channels=35, image_size=1024, channels=256, mult=(0.5, 0.5, 1, 1, 2, 2, 4, 4))
    assert config.widths[:3] == (128, 128, 256)
    with torch.device("meta"):
        out = SDM(config)(torch.empty(1, 3, 1024, 1024), torch.empty(1), torch.empty(1, 35, 1024, 1024))
    assert out.shape == (1, 6, 1024, 1024)


def test_sides_need_not_be_equal() -> None:
    with torch.device("meta"):
        out = SDM(TINY)(torch.empty(2, 3, 16, 32), torch.empty(2), torch.empty(2, 5, 16, 32))
    assert out.shape == (2, 6, 16, 32)


def test_untrained_output_is_zero() -> None:
    assert SDM(TINY)(*inputs(TINY)).abs().max() == 0


def test_labels_enter_the_middle_and_the_decoder_only() -> None:
    model = SDM(TINY)
    places = {name.split(".")[0] for name, module in model.named_modules() if isinstance(module, SpadeNorm)}
    assert places == {"middle", "decoder"}
    blocks = [name for name, _ in model.named_modules() if name.endswith(("norm1", "norm2")) and "encoder" not in name]
    assert all(isinstance(model.get_submodule(name), SpadeNorm) for name in blocks)


def test_encoder_does_not_see_the_layout() -> None:
    model = fill(SDM(TINY))
    seen: list[Tensor] = []
    last = model.get_submodule(f"encoder.{len(model.encoder) - 1}.0")
    last.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    x, t, layout = inputs(TINY)
    outputs = [model(x, t, layout), model(x, t, torch.zeros_like(layout))]
    assert torch.equal(seen[0], seen[1])
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_null_label_is_not_class_zero() -> None:
    model = fill(SDM(TINY))
    x, t, layout = inputs(TINY)
    null, class_zero = torch.zeros_like(layout), torch.zeros_like(layout)
    class_zero[:, 0] = 1
    assert (model(x, t, null) - model(x, t, class_zero)).abs().max() > 1e-3


@pytest.mark.parametrize("patch", [1, 2])
def test_every_pixel_of_the_layout_counts(patch: int) -> None:
    model = fill(SDM(dataclasses.replace(TINY, patch=patch, attention_resolutions=())))
    x, t, layout = inputs(TINY, batch=1)
    before = model(x, t, layout)
    # An odd pixel: a layout that is merely subsampled to half the resolution would not hold it.
    changed = layout.clone()
    changed[0, :, 7, 9] = layout[0, :, 7, 9].roll(1)
    assert (model(x, t, changed) - before).abs().max() > 1e-4


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    model = fill(SDM(TINY))
    x, t, layout = inputs(TINY, batch=3)
    whole = model(x, t, layout)
    single = model(x[1:2], t[1:2], layout[1:2])
    torch.testing.assert_close(whole[1:2], single, rtol=1e-4, atol=1e-4)


def test_integer_and_float_timesteps_agree_and_differ_from_their_neighbours() -> None:
    model = fill(SDM(TINY))
    x, t, layout = inputs(TINY)
    assert torch.equal(model(x, t, layout), model(x, t.double(), layout))
    assert not torch.equal(model(x, t, layout), model(x, t + 1, layout))


def test_bf16_model_tells_late_timesteps_apart() -> None:
    model = fill(SDM(TINY)).to(torch.bfloat16)
    x, _, layout = inputs(TINY)
    late = model(x, torch.tensor([997, 997]), layout)
    assert late.dtype == torch.float32
    assert not torch.equal(late, model(x, torch.tensor([999, 999]), layout))


def test_checkpointing_changes_no_gradient() -> None:
    x, t, layout = inputs(TINY)
    gradients = []
    for config in (TINY, dataclasses.replace(TINY, checkpoint=True)):
        model = fill(SDM(config))
        model(x, t, layout).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and recomputed is not None
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("resblock_updown", [True, False])
@pytest.mark.parametrize("patch", [1, 2])
def test_every_parameter_gets_a_gradient(resblock_updown: bool, patch: int) -> None:
    config = dataclasses.replace(TINY, resblock_updown=resblock_updown, patch=patch, image_size=16 * patch)
    model = fill(SDM(config))
    model(*inputs(config, size=16)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"image_size": 15}, "image_size"),
        ({"mult": (0.3, 1)}, "mult"),
        ({"mult": ()}, "mult"),
        ({"spade_hidden": 0}, "spade_hidden"),
        ({"attention_resolutions": (4,)}, "attention_resolutions"),
    ],
)
def test_bad_configurations_are_refused_by_name(changes: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(TINY, **changes)


def test_bad_head_width_is_refused() -> None:
    with pytest.raises(ValueError, match="head_channels"):
        SDM(dataclasses.replace(TINY, head_channels=5))


def test_bad_shapes_are_refused_by_name() -> None:
    model = SDM(TINY)
    x, t, layout = inputs(TINY)
    with pytest.raises(ValueError, match="x must be"):
        model(x[..., :15], t, layout[..., :15])
    with pytest.raises(ValueError, match="t must be"):
        model(x, t[:1], layout)
    with pytest.raises(ValueError, match="layout must be"):
        model(x, t, layout[:, :4])


def golden_output() -> list[float]:
    """Every 24th number of what the tiny model answers, with weights and inputs from numpy."""
    with torch.no_grad():
        return fill(SDM(TINY))(*inputs(TINY)).flatten()[::24].tolist()


def test_golden_output() -> None:
    """The function that old checkpoints were trained as has not moved. Rewrite: `python tests/models/test_sdm.py`."""
    expected = torch.tensor(json.loads(GOLDEN.read_text()))
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.tensor(golden_output()), expected, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps([round(value, 5) for value in golden_output()]) + "\n")
