"""Names and shapes of `FluxTransformer2DModel`'s parameters, from its config.json alone.

Login-node code: what a job names is checked without loading anything. A test compares with the real module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any

Shape = tuple[int, ...]
TIME_CHANNELS = 256
"""Sines and cosines of a timestep."""
MLP_RATIO = 4


def linear_layers(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Linear layer -> shape of its weight, (outputs, inputs)."""
    d = width(config)
    channels = config["in_channels"]
    out = (config.get("out_channels") or channels) * config.get("patch_size", 1) ** 2
    layers: dict[str, Shape] = {
        "time_text_embed.timestep_embedder.linear_1": (d, TIME_CHANNELS),
        "time_text_embed.timestep_embedder.linear_2": (d, d),
    }
    if config["guidance_embeds"]:
        layers |= {
            "time_text_embed.guidance_embedder.linear_1": (d, TIME_CHANNELS),
            "time_text_embed.guidance_embedder.linear_2": (d, d),
        }
    layers |= {
        "time_text_embed.text_embedder.linear_1": (d, config["pooled_projection_dim"]),
        "time_text_embed.text_embedder.linear_2": (d, d),
        "context_embedder": (d, config["joint_attention_dim"]),
        "x_embedder": (d, channels),
    }
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for i in range(config["num_layers"]):
        block = f"transformer_blocks.{i}"
        layers |= {f"{block}.{norm}.linear": (6 * d, d) for norm in ("norm1", "norm1_context")}
        layers |= {f"{block}.attn.{name}": (d, d) for name in attention}
        for mlp in ("ff", "ff_context"):
            layers |= {f"{block}.{mlp}.net.0.proj": (MLP_RATIO * d, d), f"{block}.{mlp}.net.2": (d, MLP_RATIO * d)}
    for i in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{i}"
        layers |= {f"{block}.norm.linear": (3 * d, d), f"{block}.proj_mlp": (MLP_RATIO * d, d)}
        layers |= {f"{block}.proj_out": (d, (1 + MLP_RATIO) * d)}
        layers |= {f"{block}.attn.{name}": (d, d) for name in ("to_q", "to_k", "to_v")}
    return layers | {"norm_out.linear": (2 * d, d), "proj_out": (out, d)}


def parameters(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Parameter -> shape."""
    found: dict[str, Shape] = {}
    for name, shape in linear_layers(config).items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    head = (config["attention_head_dim"],)
    for i in range(config["num_layers"]):
        norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
        found |= {f"transformer_blocks.{i}.attn.{norm}.weight": head for norm in norms}
    for i in range(config["num_single_layers"]):
        found |= {f"single_transformer_blocks.{i}.attn.{norm}.weight": head for norm in ("norm_q", "norm_k")}
    return found


def width(config: Mapping[str, Any]) -> int:
    """Width of the token stream: 3072 for Flux.1."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def count(config: Mapping[str, Any], names: Iterable[str] | None = None) -> int:
    """Number of parameters, of all or of those with `names`."""
    shapes = parameters(config)
    return sum(prod(shapes[name]) for name in (shapes if names is None else names))


def block_of(parameter: str) -> str:
    """The block that a parameter belongs to, such as transformer_blocks.3; for the others the first part."""
    found = re.match(r"(?:single_)?transformer_blocks\.\d+", parameter)
    return found.group() if found else parameter.partition(".")[0]


def chosen(names: Iterable[str], train: Sequence[str], freeze: Sequence[str]) -> list[str]:
    """Names that a pattern of `train` matches and none of `freeze`."""
    return [
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in train)
        and not any(fnmatchcase(name, pattern) for pattern in freeze)
    ]


def targets(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Layers that adapters go to: those whose name is a wanted one, ends with it after a dot, or fits it as a pattern
    such as `single_transformer_blocks.*.proj_mlp`."""
    return [name for name in names if any(_is_target(name, one) for one in wanted)]


def _is_target(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}") or fnmatchcase(name, wanted)


def kinds(names: Iterable[str]) -> list[str]:
    """Names with their block numbers as *, each once: a list that a person can read."""
    return list(dict.fromkeys(re.sub(r"blocks\.\d+", "blocks.*", name) for name in names))
