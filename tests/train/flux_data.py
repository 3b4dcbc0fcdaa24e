"""A captioned `city`, its cached columns, and settings of tiny Flux trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_flux import TOKENS

from semiocity.data.lease import Owner
from semiocity.data.manifest import merge, read_manifest
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.stages.base import make_stage, parents_of, revision
from semiocity.stages.runner import run_shards

SHAPES = [[32, 48], [32, 32], [48, 32]]
"""Width and height of the pictures of `captioned_shapes`: buckets of them."""


def captioned_city(folder: Path, rows: int, size: int = 32) -> Path:
    """Pictures of `size`² with captions from their label maps."""
    source = {"kind": "city", "train": rows, "val": 2, "size": [size, size]}
    recipe = Recipe.model_validate({"name": "city", "source": source, "shard_rows": 8})
    plan = make_plan(recipe, folder)
    assert pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: False, report=lambda facts: None)
    merge(folder, "base", plan.revision)
    return add_column(folder, "caption", captioner="labels")


def add_column(dataset: Path, name: str, **args: Any) -> Path:
    """Run a stage over the whole dataset."""
    stage = make_stage(name, args)
    stage.check()
    facts = read_manifest(dataset)
    made = revision(stage, {parent: facts["columns"][parent]["revision"] for parent in parents_of(stage)})
    assert run_shards(stage, dataset, stage.column, made, range(facts["columns"]["base"]["shards"]), Owner.here())
    merge(dataset, stage.column, made)
    return dataset


def cache(dataset: Path, model: Path, **latent: Any) -> Path:
    """Columns `latent` and `text` by the model's own parts."""
    common = {"encoder": "flux", "model": str(model)}
    sizes = {} if "buckets" in latent else {"size": 32}
    add_column(dataset, "latent", **common, **sizes, **latent)
    return add_column(dataset, "text", **common, tokens=TOKENS)


def flux(
    task: str, pretrained: Path, zero: dict[str, Any], model: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A tiny training of `flux-full` or `flux-lora`."""
    own = {
        "pretrained": str(pretrained),
        "text_tokens": TOKENS,
        "vae_dtype": "float32",
        "sample_steps": 2,
        "prompt_dropout": 0.2,
        **({"rank": 4, "alpha": 8.0} if task == "flux-lora" else {}),
        **(model or {}),
    }
    averaged = own.get("average", task == "flux-full")
    return {
        "task": task,
        "steps": 6,
        "global_batch": 8,
        "accumulation": 2,
        "checkpoint_every": 4,
        "sample_every": 3,
        "sample_images": 3,
        "log_every": 2,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        **({"ema": {"decay": 0.9}} if averaged else {}),
        "data": {"size": 32, "flip": True, "tail": "pad", "window": 2},
        "zero": zero,
        "model": own,
        **more,
    }


def captioned_shapes(folder: Path, rows: int) -> Path:
    """Pictures of three shapes, as many of each, with captions from their label maps."""
    pictures = folder.parent / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(1)
    for i in range(rows):
        width, height = SHAPES[i % 3]
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        Image.fromarray(pixels[..., 0] % 2).save(pictures / f"{i}.label.png")
    classes = [{"name": "road", "color": [90, 90, 90]}, {"name": "sky", "color": [0, 0, 255]}]
    source = {"kind": "folder", "root": str(pictures)}
    settings = {"name": "shapes", "source": source, "fields": ["image", "label"], "classes": classes, "shard_rows": 10}
    plan = make_plan(Recipe.model_validate(settings), folder)
    assert pack_shards(plan, range(plan.shards), Owner.here())
    merge(folder, "base", plan.revision)
    return add_column(folder, "caption", captioner="labels")
