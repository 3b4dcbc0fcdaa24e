"""Images for prompts as a job: what is checked on the login node."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from semiocity.config import apply_set, load_toml
from semiocity.errors import UserError
from semiocity.launch.jobs import Work, run_folder


def has_prompts(job_file: Path, sets: Sequence[str]) -> bool:
    """Whether a job of `semiocity generate` is about prompts rather than layouts."""
    data = {}
    with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):  # said properly by whoever loads it
        data = tomllib.loads(job_file.read_text(encoding="utf-8"))
    for item in sets:
        apply_set(data, item)
    return "prompts" in data


def prompts(job_file: Path, sets: Sequence[str]) -> Work:
    """Images for a file of prompts; tasks share the prompts."""
    from semiocity.evaluate import prompt_options

    job = load_toml(job_file, prompt_options.PromptJob, sets)
    run = run_folder(job.run)
    try:
        source = prompt_options.source_of(job, run)
        job = prompt_options.with_defaults(job, source)
        found = prompt_options.read_prompts(job)
        source.check(found)
    except UserError as error:
        raise UserError(f"{job_file}: {error}") from None
    if job.device == "cuda" and job.resources.gpus_per_node == 0:
        raise UserError(f'{job_file}: device is "cuda" but resources.gpus_per_node is 0; ask for a GPU, or take cpu')
    resolved = job.model_dump(mode="json") | {"prompts_digest": prompt_options.digest_of(found)}
    return Work(
        kind="generate",
        run=run,
        dataset=job.prompts.parent.resolve(),
        job=resolved,
        resources=job.resources,
        image=job.image,
        units=min(job.tasks, len(found)),
        binds=tuple(path.resolve() for path in source.paths()),
    )
