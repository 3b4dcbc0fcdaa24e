"""Images for prompts as a job: what is checked on the login node."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.config import apply_set, load_toml
from semiocity.errors import UserError
from semiocity.launch import jobs
from semiocity.launch.jobs import Work

if TYPE_CHECKING:
    from semiocity.evaluate.prompt_options import Prompt, PromptJob, Source


def prompts_of(job_file: Path, sets: Sequence[str]) -> Path | None:
    """The file of prompts that a job of `semiocity generate` names; None when it is about layouts."""
    data: dict[str, Any] = {}
    with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):  # said properly by whoever loads it
        data = tomllib.loads(job_file.read_text(encoding="utf-8"))
    for item in sets:
        apply_set(data, item)
    return Path(str(data["prompts"])) if "prompts" in data else None


def generate(job_file: Path, sets: Sequence[str]) -> Work:
    """Images for prompts or for layouts, whichever the job is about."""
    return (prompts if prompts_of(job_file, sets) else jobs.generate)(job_file, sets)


def check(job_file: Path, job: PromptJob, run: Path | None) -> tuple[PromptJob, Source | None, list[Prompt]]:
    """The job with what its model says where it is silent, that model, and the prompts. Raises UserError.

    `run` is None for a model that is not there yet: then only what needs none is checked, and there is no source.
    """
    from semiocity.evaluate import prompt_options

    try:
        if job.device == "cuda" and job.resources.gpus_per_node == 0:
            raise UserError('device is "cuda" but resources.gpus_per_node is 0; ask for a GPU, or take cpu')
        if job.base is not None and not job.base.is_dir():
            raise UserError(f"base: {job.base}: no such folder")
        if run is None:
            return job, None, prompt_options.read_prompts(job)
        source = prompt_options.source_of(job, run)
        job = prompt_options.with_defaults(job, source)
        found = prompt_options.read_prompts(job)
        source.check(found)
    except UserError as error:
        raise UserError(f"{job_file}: {error}") from None
    return job, source, found


def prompts(job_file: Path, sets: Sequence[str]) -> Work:
    """Images for a file of prompts; tasks share the prompts. Its dataset, which it has none of, is the run folder."""
    from semiocity.evaluate import prompt_options

    job = load_toml(job_file, prompt_options.PromptJob, sets)
    run = jobs.run_folder(job.run)
    job, source, found = check(job_file, job, run)
    assert source is not None
    own = {} if job.model else {"model": run / "export" / "config.json", "training": run / "done.json"}
    resolved = job.model_dump(mode="json") | {"prompts_digest": prompt_options.digest_of(found)}
    return Work(
        kind="generate",
        run=run,
        dataset=run,
        job=resolved,
        resources=job.resources,
        image=job.image,
        units=min(job.tasks, len(found)),
        inputs=jobs.contents(**own),
        binds=tuple(path.resolve() for path in source.paths()),
        files={"prompts": job.prompts.resolve()},
    )
