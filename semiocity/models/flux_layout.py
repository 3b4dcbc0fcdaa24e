"""Flux's weights in the names and shapes of Black Forest Labs' own files, which ComfyUI and others read.

Their code keeps query, key and value of a stream in one matrix (single blocks: with the MLP's first), and has shift
before scale in the last modulation; diffusers has them apart and the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
"""Layer of a double block -> diffusers' layers, whose outputs it has one after the other."""
SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
OUTSIDE: dict[str, tuple[str, ...]] = {
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "txt_in": ("context_embedder",),
    "img_in": ("x_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
SINGLE_NORMS = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}
SWAPPED = "final_layer.adaLN_modulation.1"


class Layer(NamedTuple):
    """A linear layer of the original layout."""

    name: str
    parts: tuple[str, ...]
    """Diffusers' layers that it is made of."""


def layers(double: int, single: int) -> Iterator[Layer]:
    """All linear layers of a model with so many blocks."""
    for name, parts in OUTSIDE.items():
        yield Layer(name, parts)
    for i in range(double):
        for name, parts in DOUBLE.items():
            yield Layer(f"double_blocks.{i}.{name}", tuple(f"transformer_blocks.{i}.{part}" for part in parts))
    for i in range(single):
        for name, parts in SINGLE.items():
            yield Layer(f"single_blocks.{i}.{name}", tuple(f"single_transformer_blocks.{i}.{part}" for part in parts))


def norms(double: int, single: int) -> Iterator[tuple[str, str]]:
    """All weights of normalisations: name in the original layout, and diffusers'."""
    for i in range(double):
        for name, part in DOUBLE_NORMS.items():
            yield f"double_blocks.{i}.{name}", f"transformer_blocks.{i}.{part}"
    for i in range(single):
        for name, part in SINGLE_NORMS.items():
            yield f"single_blocks.{i}.{name}", f"single_transformer_blocks.{i}.{part}"


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's state dict in the original layout. Every tensor must be known: KeyError otherwise."""
    left = dict(state)
    made: dict[str, Tensor] = {}
    for name, parts in layers(*blocks(state)):
        if parts[0].startswith("time_text_embed.guidance") and f"{parts[0]}.weight" not in state:
            continue  # not a guidance-distilled model
        for kind in ("weight", "bias"):
            tensors = [left.pop(f"{part}.{kind}") for part in parts]
            whole = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            made[f"{name}.{kind}"] = swap_halves(whole) if name == SWAPPED else whole
    made |= {original: left.pop(name) for original, name in norms(*blocks(state))}
    if left:
        raise KeyError(f"{min(left)} has no place in Flux's original layout")
    return made


def from_original(state: Mapping[str, Tensor], outputs: Mapping[str, int]) -> dict[str, Tensor]:
    """Inverse of `to_original`; `outputs`: diffusers' layer -> its number of outputs. Names may begin with
    "model.diffusion_model.", as in ComfyUI's own files. KeyError for a tensor that is not there or not known."""
    left = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in state.items()}
    made: dict[str, Tensor] = {}
    for name, parts in layers(*blocks(outputs)):
        if parts[0] not in outputs:
            continue
        for kind in ("weight", "bias"):
            whole = left.pop(f"{name}.{kind}")
            pieces = (swap_halves(whole) if name == SWAPPED else whole).split([outputs[part] for part in parts])
            made |= {f"{part}.{kind}": piece for part, piece in zip(parts, pieces)}
    made |= {name: left.pop(original) for original, name in norms(*blocks(outputs))}
    if left:
        raise KeyError(f"{min(left)} is no part of this Flux model")
    return made


def blocks(names: Mapping[str, object]) -> tuple[int, int]:
    """Numbers of double and of single blocks."""

    def highest(prefix: str) -> int:
        found = [int(m.group(1)) for name in names if (m := re.match(rf"{prefix}\.(\d+)\.", name))]
        return max(found, default=-1) + 1

    return highest("transformer_blocks"), highest("single_transformer_blocks")


def swap_halves(tensor: Tensor) -> Tensor:
    """Scale and shift, the halves of the first dimension, change places."""
    return torch.cat(tensor.chunk(2)[::-1])


# -- adapters ---------------------------------------------------------------------------------------------------------


class Adapter(NamedTuple):
    """A low-rank adapter of one layer: W + alpha/rank · up·down."""

    down: Tensor
    """[rank, inputs]"""
    up: Tensor
    """[outputs, rank]"""


def adapters_to_original(
    adapters: Mapping[str, Adapter], outputs: Mapping[str, int], alpha: float, double: int, single: int
) -> dict[str, Tensor]:
    """Adapters of diffusers' layers under the names of kohya's scripts, which ComfyUI and others read:
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .lora_up.weight, .alpha.

    `outputs`: layer -> its number of outputs. An adapter of a matrix that is several layers here has the sum of their
    ranks: their downs one below the other, their ups along a diagonal; alpha grows with the rank, so the scale stays.
    """
    made: dict[str, Tensor] = {}
    left = set(adapters)
    for name, parts in layers(double, single):
        there = [part for part in parts if part in adapters]
        if not there:
            continue
        left -= set(there)
        down = torch.cat([adapters[part].down for part in there])
        up = torch.zeros(sum(outputs[part] for part in parts), len(down), dtype=down.dtype)
        row = column = 0
        for part in parts:
            if part in adapters:
                rank = adapters[part].up.shape[1]
                up[row : row + outputs[part], column : column + rank] = adapters[part].up
                column += rank
            row += outputs[part]
        if name == SWAPPED:
            up = swap_halves(up)
        key = "lora_unet_" + name.replace(".", "_")
        rank = adapters[there[0]].up.shape[1]
        made |= {
            f"{key}.lora_down.weight": down.contiguous(),
            f"{key}.lora_up.weight": up.contiguous(),
            f"{key}.alpha": torch.tensor(float(alpha * len(down) / rank)),
        }
    if left:
        raise KeyError(f"{min(left)} has no place in Flux's original layout")
    return made


def kohya_pairs(state: Mapping[str, Tensor]) -> dict[str, tuple[Adapter, float]]:
    """Adapter and alpha by kohya's name of a layer, such as lora_unet_double_blocks_0_img_attn_qkv. Without an alpha it
    is the rank. KeyError for a tensor that is none of lora_down.weight, lora_up.weight and alpha."""
    ends = (".lora_down.weight", ".lora_up.weight", ".alpha")
    if odd := [name for name in state if not name.endswith(ends)]:
        raise KeyError(f"{min(odd)} is no part of a plain low-rank adapter")
    found: dict[str, tuple[Adapter, float]] = {}
    for layer in sorted({name.partition(".")[0] for name in state}):
        pair = Adapter(*(_tensor(state, layer + end) for end in ends[:2]))
        alpha = state.get(layer + ends[2])
        found[layer] = pair, float(len(pair.down) if alpha is None else alpha)
    return found


def adapters_from_original(
    pairs: Mapping[str, tuple[Adapter, float]], outputs: Mapping[str, int], double: int, single: int
) -> dict[str, tuple[Adapter, float]]:
    """Inverse of `adapters_to_original`, of what `kohya_pairs` found: adapter and alpha by diffusers' name.

    Of a matrix that is several layers here, each layer gets its rows of `up`, and of the ranks those that it uses;
    alpha shrinks with the rank, so the scale stays. KeyError for a layer that is not known or does not fit.
    """
    left = dict(pairs)
    made: dict[str, tuple[Adapter, float]] = {}
    for name, parts in layers(double, single):
        key = "lora_unet_" + name.replace(".", "_")
        if key not in left or parts[0] not in outputs:
            continue
        (down, up), alpha = left.pop(key)
        sizes = [outputs[part] for part in parts]
        if len(up) != sum(sizes) or up.shape[1] != len(down):
            raise KeyError(f"{key}: {list(down.shape)} and {list(up.shape)} fit no layer with {sum(sizes)} outputs")
        for part, rows in zip(parts, (swap_halves(up) if name == SWAPPED else up).split(sizes)):
            used = rows.any(0)
            if used.any():
                adapter = Adapter(down[used].contiguous(), rows[:, used].contiguous())
                made[part] = adapter, alpha * int(used.sum()) / len(down)
    if left:
        raise KeyError(f"{min(left)} is no layer of this Flux model")
    return made


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise KeyError(f"{name} is missing")
    return state[name]
