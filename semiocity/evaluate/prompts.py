"""Images for prompts from Flux: a function of model, prompt, settings and seed, however the prompts are divided.

A prompt's images are painted together and published by one rename, so a stopped task loses at most one prompt's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semiocity.errors import UserError
from semiocity.evaluate import noise
from semiocity.evaluate.flux_painter import FluxPainter
from semiocity.evaluate.images import Pixels
from semiocity.evaluate.painter import choose_device
from semiocity.evaluate.prompt_options import (
    Prompt,
    PromptJob,
    Source,
    digest_of,
    read_prompts,
    source_of,
    with_defaults,
)
from semiocity.evaluate.samples import complete, is_done, merge_samples, publish, read_manifest, write_plan

SETTINGS = ("lora_scale", "steps", "guidance", "negative_prompt", "true_guidance", "batch", "dtype")
"""What of a job decides what the images become, beside the prompts' own; it is in the manifest."""
VERSION = 1
"""Raised when the same settings make other images."""


def run(job: PromptJob, run: Path, index: int, of: int, stop: Callable[[], bool]) -> bool:
    """Paint task `index`'s share of the prompts, what is missing of it, into `run`/samples.

    Looks at `stop` between prompts. Returns False when it stopped early. The task that finds all images there writes
    the manifest. UserError when the prompts were changed since the submission.
    """
    source = source_of(job, run)
    job = with_defaults(job, source)
    prompts = read_prompts(job)
    if job.prompts_digest not in (None, digest_of(prompts)):
        raise UserError(f"{job.prompts}: changed since the job was submitted; submit it again")
    device = choose_device(job.device)
    folder = run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    keys = [prompt.key for prompt in prompts]
    places = {"model": os.path.relpath((job.model or run / "export").resolve(), folder.resolve())}
    name = write_plan(folder, settings(job, source, device), places, keys, {p.key: p.about() for p in prompts})

    mine = prompts[index * len(prompts) // of : (index + 1) * len(prompts) // of]
    painter: FluxPainter | None = None
    for done, prompt in enumerate(mine):
        if stop():
            return False
        if not is_done(folder, prompt.key, name):
            painter = painter or FluxPainter(source, job, device)
            publish(folder, prompt.key, name, *paint(painter, prompt))
        print(f"{done + 1} of {len(mine)} prompts", flush=True)
    if complete(folder, keys, name):
        merge_samples(folder)
    return True


def regenerate(manifest: Path, out: Path, model: Path | None = None) -> list[str]:
    """Make the images of a manifest again in `out`, and name those that differ. UserError when the model is another."""
    old = read_manifest(manifest)
    if out.resolve() == manifest.parent.resolve():
        raise UserError(f"{out}: these are the images to compare with; choose another folder")
    wanted = old["settings"]
    place = model or (manifest.parent / old["places"]["model"]).resolve()
    taken = {key: wanted[key] for key in (*SETTINGS, "text_tokens", "device")}
    job = PromptJob(prompts=Path("-"), run="again", model=place, base=wanted["base"], **taken)
    source = source_of(job, out)
    device = choose_device(job.device)
    if (found := settings(job, source, device)) != wanted:
        different = [key for key in wanted if found.get(key) != wanted[key]]
        raise UserError(
            f"{manifest}: made with another {different[0]} ({wanted[different[0]]}, now {found[different[0]]})"
        )
    by_key: dict[str, list[dict[str, Any]]] = {}
    for image in old["images"]:
        by_key.setdefault(image["key"], []).append(image)
    out.mkdir(parents=True, exist_ok=True)
    about = {key: {name: images[0][name] for name in ("prompt", "width", "height")} for key, images in by_key.items()}
    name = write_plan(out, found, {"model": os.path.relpath(place, out.resolve())}, list(by_key), about)
    painter = FluxPainter(source, job, device)
    for key, images in by_key.items():
        first = images[0]
        prompt = Prompt(key, first["prompt"], first["height"], first["width"], 0, len(images))
        seeds = [image["seed"] for image in images]
        publish(out, key, name, painted(painter, prompt, seeds), seeds)
    before = {image["file"]: image for image in old["images"]}
    return [
        f"{image['file']}: {'other pixels' if image['pixels'] != before[image['file']]['pixels'] else 'other encoding'}"
        for image in merge_samples(out)["images"]
        if image["sha256"] != before[image["file"]]["sha256"]
    ]


def settings(job: PromptJob, source: Source, device: torch.device) -> dict[str, Any]:
    """Everything that decides what the images become, but for the prompts; part of the manifest."""
    return {
        "kind": "prompts",
        "version": VERSION,
        "model": source.digest(),
        "base": str(source.base),
        "device": device.type,
        "text_tokens": job.text_tokens,
        **{name: getattr(job, name) for name in SETTINGS},
    }


def paint(painter: FluxPainter, prompt: Prompt) -> tuple[list[Pixels], list[str]]:
    """All images of a prompt, and their seeds."""
    seeds = [noise.image_seed(prompt.seed, prompt.key, number) for number in range(prompt.images)]
    return painted(painter, prompt, seeds), seeds


def painted(painter: FluxPainter, prompt: Prompt, seeds: Sequence[str]) -> list[Pixels]:
    """Images of a prompt from the noise of given seeds."""
    step = painter.job.batch
    parts = [painter.paint(prompt, seeds[first : first + step]) for first in range(0, len(seeds), step)]
    return list(np.concatenate(parts))
