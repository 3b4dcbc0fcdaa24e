"""A LoRA's file into a Flux pipeline: as diffusers names its layers, or as kohya's scripts and ComfyUI do.

diffusers has no loader for adapters of T5, drops them from kohya's files without a word, and converts those at FLUX.1's
own widths alone. So T5's adapters are added to its weights here, and kohya's names are read by `semiocity.models`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from semiocity.errors import UserError
from semiocity.models import flux_layout, flux_names
from semiocity.models.flux_layout import Adapter

TRANSFORMER, CLIP, T5 = "transformer", "text_encoder", "text_encoder_2"
KOHYA = {TRANSFORMER: "lora_unet_", CLIP: "lora_te1_", T5: "lora_te2_"}
OLD_CLIP = "text_model."
"""What CLIP's layers began with before transformers 5, and still do in files."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps alpha."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
Pairs = dict[str, tuple[Adapter, float]]
"""Layer -> adapter and alpha."""


def load(pipeline: Any, file: Path, scale: float = 1.0) -> None:
    """Put the adapters of a file into a pipeline's parts, at `scale`. UserError when they do not fit it."""
    with safe_open(file, "pt") as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    try:
        if all(name.startswith(tuple(KOHYA.values())) for name in state):
            found = from_kohya(pipeline, state)
            t5, ours = found.pop(T5), _named(found)
            if ours:
                pipeline.load_lora_weights(ours, adapter_name="lora")
        else:
            check(pipeline, state)
            t5 = t5_pairs(state, metadata)
            ours = {name: tensor for name, tensor in state.items() if not name.startswith(f"{T5}.")}
            if ours:
                pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="lora")
        if ours:
            pipeline.set_adapters(["lora"], [scale])
        add(pipeline.text_encoder_2, t5, scale)
    except (KeyError, ValueError, RuntimeError, AssertionError) as error:
        why = error.args[0] if isinstance(error, KeyError) else error
        hint = "" if ".lora_A." in next(iter(state), "") else "; of a training's export take lora.safetensors"
        raise UserError(f"model: {file} does not fit base {pipeline.config._name_or_path}: {why}{hint}") from None


def from_kohya(pipeline: Any, state: Mapping[str, Tensor]) -> dict[str, Pairs]:
    """Part -> its adapters, under diffusers' names. KeyError for one that has no place."""
    pairs = flux_layout.kohya_pairs(state)
    config = pipeline.transformer.config
    outputs = {name: shape[0] for name, shape in flux_names.linear_layers(config).items()}
    unet = {name: pair for name, pair in pairs.items() if name.startswith(KOHYA[TRANSFORMER])}
    numbers = config["num_layers"], config["num_single_layers"]
    found = {TRANSFORMER: flux_layout.adapters_from_original(unet, outputs, *numbers)}
    for part in (CLIP, T5):
        linear = [name for name, module in getattr(pipeline, part).named_modules() if isinstance(module, nn.Linear)]
        known = {name.removeprefix(OLD_CLIP).replace(".", "_"): name for name in linear}
        found[part] = {}
        for key, pair in pairs.items():
            if key.startswith(KOHYA[part]):
                name = key.removeprefix(KOHYA[part]).removeprefix(OLD_CLIP.replace(".", "_"))
                if name not in known:
                    raise KeyError(f"{key} is no layer of {part}")
                found[part][known[name]] = pair
    return found


def check(pipeline: Any, state: Mapping[str, Tensor]) -> None:
    """KeyError where an adapter under diffusers' names has no layer of its shape: diffusers would leave it out, or
    widen one of the two."""
    for part in (TRANSFORMER, CLIP, T5):
        layers = dict(getattr(pipeline, part).named_modules())
        layers |= {OLD_CLIP + name: layer for name, layer in layers.items()} if part == CLIP else {}
        for name, tensor in state.items():
            end = next((end for end in (DOWN, UP) if name.endswith(end)), None)
            if end is None or not name.startswith(f"{part}."):
                continue
            layer: Any = layers.get(name.removeprefix(f"{part}.").removesuffix(end))
            if not isinstance(layer, nn.Linear):
                raise KeyError(f"{name} belongs to no layer of it")
            found, wanted = (tensor.shape[1], layer.in_features) if end == DOWN else (len(tensor), layer.out_features)
            if found != wanted:
                raise KeyError(
                    f"{name} is for a layer with {found}, not {wanted} {'inputs' if 'A' in end else 'outputs'}"
                )


def t5_pairs(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Pairs:
    """T5's adapters in a file with diffusers' names. Where the file does not say alpha it is the rank, as diffusers
    has it for the other parts."""
    settings = json.loads(metadata.get(METADATA, "{}"))
    found: Pairs = {}
    for name in state:
        if name.startswith(f"{T5}.") and name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            pair = Adapter(state[name], state[layer + UP])
            layer = layer.removeprefix(f"{T5}.")
            found[layer] = pair, float(settings.get(f"{T5}.lora_alpha", len(pair.down)))
    return found


@torch.no_grad()
def add(model: nn.Module, pairs: Pairs, scale: float) -> None:
    """Add adapters to a model's own weights. KeyError or RuntimeError where one does not fit."""
    layers = dict(model.named_modules())
    for name, (adapter, alpha) in pairs.items():
        weight: Any = layers[name].weight
        update = adapter.up.float() @ adapter.down.float()
        weight.add_((update * (scale * alpha / len(adapter.down))).to(weight.dtype))


def _named(parts: Mapping[str, Pairs]) -> dict[str, Any]:
    """Adapters as diffusers takes them from a dict."""
    named: dict[str, Any] = {}
    for part, pairs in parts.items():
        for layer, (adapter, alpha) in pairs.items():
            named |= {f"{part}.{layer}{DOWN}": adapter.down, f"{part}.{layer}{UP}": adapter.up}
            named[f"{part}.{layer}.alpha"] = alpha
    return named
