"""Settings of `generate` for prompts, the prompts themselves, and where the model is. Importable on a login node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from semiocity.config import Resources, Strict, check
from semiocity.data.buckets import Side
from semiocity.data.keys import slug
from semiocity.errors import UserError
from semiocity.files import digest, read_json
from semiocity.stages import flux_parts, weights
from semiocity.stages.latent import check_sides

LORA = "lora.safetensors"
LONGEST_HEADER = 100 * 2**20
PARTS = (*flux_parts.CLASSES, *flux_parts.TOKENIZERS, "scheduler")


class PromptJob(Strict):
    """Images for prompts from a Flux model (`jobs/generate-flux.toml`)."""

    prompts: Annotated[Path, weights.ModelFolder]
    """File of prompts: one a line (empty lines and those beginning with # are skipped), or, when its name ends in
    .jsonl, one object a line with `prompt` and any of `width`, `height`, `seed`, `images`."""
    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder under runs/ that images go to, runs/RUN/samples: the training whose model is meant, or a new one."""
    model: Annotated[Path, weights.ModelFolder] | None = None
    """None takes the run's own export. Else an export, a Flux pipeline as diffusers saves it, or a .safetensors file: a
    transformer in the original layout, or a LoRA; files need `base`."""
    base: Annotated[Path, weights.ModelFolder] | None = None
    """Pipeline folder for the parts that `model` does not hold. A LoRA's export names the one it was trained on."""
    lora_scale: float = 1.0
    """Strength of a LoRA."""
    size: Side | tuple[Side, Side] | None = None
    """Side, or [height, width], in pixels; None takes the training's, or 1024 where the model does not say."""
    images_per_prompt: int = Field(1, ge=1, le=1000)
    steps: int = Field(28, ge=1)
    guidance: float = Field(3.5, ge=0)
    """The guidance that a guidance-distilled model is told. Other models do not look at it."""
    negative_prompt: str | None = None
    true_guidance: float = Field(1.0, ge=1)
    """Classifier-free guidance away from `negative_prompt`, at twice the cost; 1 is none."""
    text_tokens: int | None = Field(None, ge=1, le=512)
    """T5 tokens of a prompt; None takes the training's, or 512 where the model does not say."""
    seed: int = Field(0, ge=0)
    batch: int = Field(1, ge=1)
    """Images of one prompt at a time. Another value may change the last bit of a pixel."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = "auto"
    """`auto` is the GPU if there is one."""
    offload: bool = False
    """Bring each part to the GPU only while it works: 26 GB instead of 34, at some seconds a prompt."""
    tasks: int = Field(1, ge=1)
    """Independent tasks that share the prompts; one GPU each on a cluster."""
    image: Path | None = None
    resources: Resources = Resources()
    prompts_digest: str | None = None
    """Of the prompts at submission; set by it."""


class Prompt(NamedTuple):
    """What is painted, and under which key."""

    key: str
    text: str
    height: int
    width: int
    seed: int
    images: int

    def about(self) -> dict[str, Any]:
        return {"prompt": self.text, "width": self.width, "height": self.height}


class _Line(Strict):
    prompt: str = Field(min_length=1)
    width: Side | None = None
    height: Side | None = None
    seed: int | None = Field(None, ge=0)
    images: int | None = Field(None, ge=1, le=1000)


class Source(NamedTuple):
    """Where the parts of a model are."""

    base: Path
    """Pipeline folder."""
    original: Path | None = None
    """Transformer in the original layout, instead of the base's."""
    lora: Path | None = None
    about: dict[str, Any] = {}  # noqa: RUF012  # never changed
    """An export's config.json."""

    def paths(self) -> list[Path]:
        """Folders that must be mounted, the real ones of linked parts among them."""
        files = [path.parent for path in (self.original, self.lora) if path is not None]
        linked = [weights.resolve(self.base) / part for part in PARTS]
        return [self.base, *files, *(path.resolve().parent for path in linked if path.is_symlink())]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse a model that could not be loaded, and sizes that it cannot paint. Raises UserError."""
        flux_parts.check(self.base, "base" if self.original or self.lora else "model", PARTS)
        stride = 2 * flux_parts.vae_factor(flux_parts.config(self.base, "vae", "model"))
        for prompt in prompts:
            check_sides(((prompt.width, prompt.height),), stride, f"size of {prompt.text[:40]!r}")

    def digest(self) -> str:
        """Of everything that is loaded."""
        files = {name: _sha256(path) for name, path in (("original", self.original), ("lora", self.lora)) if path}
        parts = [part for part in PARTS if part != "scheduler"]
        scheduler = digest(flux_parts.config(self.base, "scheduler", "model"))
        return digest({"parts": flux_parts.revision(self.base, *parts), "scheduler": scheduler, **files}, 64)


def source_of(job: PromptJob, run: Path) -> Source:
    """Where the job's model is. UserError when it is none that Flux pipelines are made of."""
    model = job.model or run / "export"
    if model.is_file():
        if job.base is None:
            raise UserError(f"base: missing; {model} is one file, so name the pipeline folder with the other parts")
        if any(".lora_" in name for name in tensor_names(model)):
            return Source(job.base, lora=model)
        return Source(job.base, original=model)
    about = _about(model)
    if about.get("kind") == "lora":
        base = job.base or Path(about["pretrained"])
        if not base.is_dir():
            raise UserError(f"base: {model} is a LoRA for {base}, which is not there; name where that pipeline is")
        return Source(base, lora=model / LORA, about=about)
    if (weights.resolve(model) / "model_index.json").is_file():
        return Source(model, about=about)
    raise UserError(
        f"model: {model}: no Flux pipeline and no export of one; `semiocity train` writes runs/NAME/export "
        "when it is done"
    )


def read_prompts(job: PromptJob) -> list[Prompt]:
    """The prompts of a job, in order. UserError naming the line that is wrong."""
    try:
        lines = job.prompts.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"prompts: {job.prompts}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompts: {job.prompts}: no UTF-8: {error.reason}") from None
    found: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (job.prompts.suffix != ".jsonl" and line.lstrip().startswith("#")):
            continue
        where = f"prompts: {job.prompts}, line {number}"
        prompt = _prompt(job, _parsed(line, where) if job.prompts.suffix == ".jsonl" else _Line(prompt=line.strip()))
        if prompt.key in found:
            raise UserError(f"{where}: the same prompt, size and seed as before; give it another `seed` (.jsonl)")
        found[prompt.key] = prompt
    if not found:
        raise UserError(f"prompts: {job.prompts}: no prompt in it")
    return list(found.values())


def with_defaults(job: PromptJob, source: Source) -> PromptJob:
    """The job with what the model says where the job is silent."""
    size, tokens = source.about.get("size", [1024, 1024]), source.about.get("text_tokens", 512)
    return job.model_copy(update={"size": job.size or tuple(size), "text_tokens": job.text_tokens or tokens})


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Of the prompts, so that a task sees whether the file was changed since the submission."""
    return digest([list(prompt) for prompt in prompts])


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its header alone. UserError when it is none."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > LONGEST_HEADER:
                raise ValueError("header too long")
            return [name for name in json.loads(opened.read(length)) if name != "__metadata__"]
    except ValueError as error:
        raise UserError(f"model: {file}: no safetensors file: {error}") from None


def _parsed(line: str, where: str) -> _Line:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f'{where}: not an object such as {{"prompt": "a street"}}')
    return check(data, _Line, where)


def _prompt(job: PromptJob, line: _Line) -> Prompt:
    size = job.size
    height, width = (size, size) if isinstance(size, int) else size or (1024, 1024)
    height, width, seed = line.height or height, line.width or width, job.seed if line.seed is None else line.seed
    images = line.images or job.images_per_prompt
    # Seed and number of images are no part of the settings, so that a changed line changes its own images alone.
    key = f"{digest([line.prompt, height, width, seed, images])[:10]}-{slug(line.prompt)}"
    return Prompt(key, line.prompt, height, width, seed, images)


def _about(model: Path) -> dict[str, Any]:
    try:
        found = read_json(model / "config.json")
    except FileNotFoundError:
        return {}
    if isinstance(found, dict) and found.get("family") not in (None, "flux"):
        raise UserError(
            f"model: {model}: a model of family {found['family']}, which paints layouts; leave `prompts` out"
        )
    return found if isinstance(found, dict) and found.get("family") == "flux" else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
