"""Settings of the tiny trainings that the tests run, and how to look at what they leave."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

STEPS = 6
SDM = {
    "channels": 8,
    "mult": [1, 1],
    "attention_resolutions": [8],
    "head_channels": 8,
    "spade_hidden": 4,
    "res_blocks": 1,
    "resblock_updown": False,
    "dropout": 0.1,
    "label_dropout": 0.3,
    "edges": True,
    "sample_steps": 2,
}


def sdm(zero: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tiny SDM of 16² pixels."""
    return {**_common(16), "task": "sdm", "model": SDM, "zero": zero, **more}


def gan(zero: dict[str, Any], model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A tiny GAN; `zero` is the generator's, the discriminator is fp32 without ZeRO."""
    own = {"generator_zero": zero, "generator_every": 2, **(model or {})}
    return {**_common(8), "task": "toy_gan", "model": own, **more}


def _common(size: int) -> dict[str, Any]:
    return {
        "steps": STEPS,
        "global_batch": 8,
        "accumulation": 2,
        "checkpoint_every": 4,
        "sample_every": 3,
        "sample_images": 3,
        "log_every": 2,
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "schedule": "cosine"},
        "ema": {"decay": 0.9},
        "data": {"size": size, "flip": True, "tail": "pad", "window": 2, "cache_mb": 1},
    }


def checkpoint(run: Path, step: int = STEPS) -> dict[str, Any]:
    """All tensors of a checkpoint, by file and name."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def differing(one: dict[str, Any], other: dict[str, Any], at: str = "") -> list[str]:
    """Names of the tensors in which two nested dicts differ by a bit, or that one of them lacks."""
    places = [f"{at}/{key}: only in one" for key in one.keys() ^ other.keys()]
    for key in one.keys() & other.keys():
        a, b = one[key], other[key]
        if isinstance(a, dict):
            places += differing(a, b, f"{at}/{key}")
        elif a.dtype != b.dtype or not torch.equal(a, b):
            places.append(f"{at}/{key}")
    return places


def history(run: Path) -> list[dict[str, Any]]:
    """The attempts of a run."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
