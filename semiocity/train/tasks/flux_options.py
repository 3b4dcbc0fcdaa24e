"""Options of the tasks `flux-full` and `flux-lora`. Importable on a login node.

What can be refused without loading anything is refused here: patterns that match nothing, from the model's config.json;
cached columns made by other weights or at other sizes, from their manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from semiocity.errors import UserError
from semiocity.models import attention_names, flux_names
from semiocity.stages import flux_parts, latent, text, weights
from semiocity.train.options import TaskOptions

if TYPE_CHECKING:
    from semiocity.train.options import DataOptions, TrainJob

TRANSFORMER_LAYERS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""Where diffusers' own Flux scripts put adapters."""


class FluxOptions(TaskOptions):
    """What both tasks share. Sources of the recipe: `semiocity.models.flux`."""

    pretrained: Annotated[Path, weights.ModelFolder]
    """Folder of the Flux pipeline that training begins from, as diffusers saves it."""
    latents: Literal["column", "fly"] = "column"
    """Latents from the column `latent` (`semiocity latent`), or from pictures while training."""
    texts: Literal["column", "fly"] = "column"
    """Embeddings from the column `text` (`semiocity text`), or from captions while training."""
    prompt_dropout: float = Field(0.1, ge=0, le=1)
    """Share of samples whose prompt is replaced by the empty one."""
    missing_caption: Literal["refuse", "empty"] = "refuse"
    """What to do with a row without a caption when texts are encoded while training."""
    text_tokens: int = Field(512, ge=1, le=512)
    guidance: float = Field(1.0, ge=0)
    """Guidance that guidance-distilled models (FLUX.1-dev) are told in training; at 1 they learn the plain flow. Other
    models do not look at it."""
    shift: float | None = None
    """μ of the shift of times. None takes what the pipeline's scheduler says: for dev, by the number of tokens."""
    stratified_t: bool = True
    """Spread the times of a global batch evenly over their distribution. Same expectation as independent draws, with
    less noise in loss and gradient."""
    recompute: Literal["all"] | int = "all"
    """Blocks, from the first, whose activations are computed again in the backward pass (activation checkpointing);
    0 for none. Without, 9.2 MB a token are kept; each block recomputed costs 1/171 of the step's FLOPs."""
    attention: str = "native"
    """How diffusers computes attention: native is torch's choice; flash, _flash_3, xformers and others need their
    package. See semiocity.models.attention_names."""
    average: bool = True
    """Whether an average of the weights ([ema]) is kept, sampled and exported."""
    vae_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    sample_prompts: tuple[str, ...] = ()
    """Prompts of the image grids, one a picture, in turn, from noise that hangs on `seed` and the place in the grid
    alone; `sample_images` must not be fewer. Without, grids show pictures of the dataset beside what the model makes of
    their captions."""
    sample_steps: int = Field(28, ge=1)
    sample_guidance: float = Field(3.5, ge=0)

    export_frozen: Literal["link", "copy"] = "link"
    """Parts that were not trained: links to `pretrained`, or copies (10 GB more) for a folder that can be sent away."""

    @field_validator("attention")
    @classmethod
    def _attention_is_known(cls, name: str) -> str:
        attention_names.check(name)
        return name

    def roles(self) -> dict[str, str]:
        image = {"latent": "latent.moments"} if self.latents == "column" else {"image": "base.image"}
        caption = {"embeddings": "text.embeddings"} if self.texts == "column" else {"caption": "caption.text"}
        return image | caption

    def averages(self) -> bool:
        return self.average

    def check_size(self, height: int, width: int) -> None:
        self._check_stride("data.size", height, width)

    def check_bucket(self, height: int, width: int) -> None:
        self._check_stride("data.buckets", height, width)

    def _check_stride(self, where: str, height: int, width: int) -> None:
        try:
            vae = flux_parts.config(self.pretrained, "vae", "model.pretrained")
            latent.check_sides(((width, height),), 2 * flux_parts.vae_factor(vae), where)
        except UserError as error:
            raise ValueError(str(error)) from None

    def paths(self) -> list[Path]:
        return [self.pretrained]

    # -- refusals that need the dataset or the weights -----------------------------------------------------------------

    def check_reading(self, job: TrainJob, columns: Mapping[str, Mapping[str, Any]]) -> None:
        where = "model.pretrained"
        flux_parts.check(self.pretrained, where, (*flux_parts.CLASSES, *flux_parts.TOKENIZERS, "scheduler"))
        if job.sample_every and job.sample_images < len(self.sample_prompts):
            raise UserError(
                f"sample_images: {job.sample_images} would leave out some of the {len(self.sample_prompts)} prompts in "
                f"model.sample_prompts; set it to {len(self.sample_prompts)} or more"
            )
        fields = job.fields_by_role()
        if self.latents == "column":
            self._check_latents(job.data, _column(columns, fields["latent"]))
        if self.texts == "column":
            self._check_texts(_column(columns, fields["embeddings"]))

    def _check_latents(self, data: DataOptions, column: Mapping[str, Any]) -> None:
        made = latent.facts_of(dict(column))
        if not made:
            raise UserError(f"data.fields.latent: column {column['column']} was not made by `semiocity latent`")
        if column["model"] != (here := flux_parts.revision(self.pretrained, "vae")):
            raise UserError(
                f"model.pretrained: column {column['column']} was encoded by another VAE ({column['model']}, here "
                f'{here}); run `semiocity latent` with this model, or set model.latents = "fly"'
            )
        args = latent.FluxLatentArgs.model_validate({**made, "model": self.pretrained})
        wanted = data.bucket_sizes or (data.height_width[::-1],)
        if args.sizes != tuple(wanted):
            raise UserError(
                f"data.{'buckets' if data.buckets else 'size'}: column {column['column']} was encoded at "
                f"{_sizes(args.sizes)}, this training wants {_sizes(wanted)}"
            )
        if data.buckets and data.height_width[::-1] not in args.sizes:
            raise UserError(f"data.size: image grids take rows of the column's sizes: {_sizes(args.sizes)}")
        if data.flip and not args.flip:
            raise UserError(
                f"data.flip: column {column['column']} has no mirrored latents; run `semiocity latent` with "
                "args.flip = true, or set data.flip = false"
            )

    def _check_texts(self, column: Mapping[str, Any]) -> None:
        made = text.facts_of(dict(column))
        if not made:
            raise UserError(f"data.fields.embeddings: column {column['column']} was not made by `semiocity text`")
        if column["model"] != (here := flux_parts.text_revision(self.pretrained)):
            raise UserError(
                f"model.pretrained: column {column['column']} was encoded by other text encoders ({column['model']}, "
                f'here {here}); run `semiocity text` with this model, or set model.texts = "fly"'
            )
        if made["tokens"] != self.text_tokens:
            raise UserError(
                f"model.text_tokens is {self.text_tokens}, but column {column['column']} was made with "
                f"{made['tokens']} tokens"
            )

    def transformer(self) -> dict[str, Any]:
        """config.json of the transformer. Raises ValueError."""
        try:
            return flux_parts.config(self.pretrained, "transformer", "model.pretrained")
        except UserError as error:
            raise ValueError(str(error)) from None


class FluxFullOptions(FluxOptions):
    """Task `flux-full`: weights of the transformer themselves."""

    train: tuple[str, ...] = Field(("*",), min_length=1)
    """Patterns of parameters to train, such as "single_transformer_blocks.*" or "*.attn.*"; the others are frozen."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that stay frozen nevertheless, such as "time_text_embed.*"."""
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Pattern -> factor of the learning rate; the first that matches a parameter counts, 1 where none does:
    {"transformer_blocks.*" = 0.5}."""
    export_original: bool = True
    """Also write flux.safetensors, one file in the original layout (for ComfyUI and others): 24 GB."""

    @model_validator(mode="after")
    def _patterns_match(self) -> FluxFullOptions:
        names = list(flux_names.parameters(self.transformer()))
        for key, patterns in (("train", self.train), ("freeze", self.freeze), ("rates", tuple(self.rates))):
            for pattern in patterns:
                if not flux_names.chosen(names, [pattern], []):
                    raise ValueError(f"{key}: {pattern!r} matches no parameter; there are {_few(names)}")
        if not self.trained():
            raise ValueError("train and freeze leave nothing to train")
        return self

    def trained(self) -> list[str]:
        """Names of the parameters that are trained."""
        return flux_names.chosen(flux_names.parameters(self.transformer()), self.train, self.freeze)

    def factor(self, parameter: str) -> float:
        """Factor of a parameter's learning rate."""
        return next((f for pattern, f in self.rates.items() if flux_names.chosen([parameter], [pattern], [])), 1.0)


class FluxLoraOptions(FluxOptions):
    """Task `flux-lora`: low-rank adapters (Hu et al. 2021, arXiv 2106.09685) beside frozen weights."""

    rank: int = Field(16, ge=1)
    alpha: float | None = Field(None, gt=0)
    """The adapter's output is scaled by alpha / rank; None takes alpha = rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapters' inputs that is dropped."""
    targets: tuple[str, ...] = Field(TRANSFORMER_LAYERS, min_length=1)
    """Linear layers of the transformer: a layer's name or its end ("attn.to_q"), or a pattern
    ("single_transformer_blocks.*.proj_mlp")."""
    base_dtype: Literal["same", "float8_e4m3"] = "same"
    """How the frozen linear layers of the transformer's blocks are stored: as zero.precision says, or in 8 bits with a
    scale for each output, made bf16 again when a layer runs: half the memory (12 GB less for FLUX.1)."""
    text_encoders: tuple[Literal["clip", "t5"], ...] = ()
    """Text encoders that get adapters too, at the projections of their attention. They must then be run while training
    (texts = "fly")."""
    average: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> FluxLoraOptions:
        if self.text_encoders and self.texts == "column":
            raise ValueError(
                "text_encoders: adapters in a text encoder change its embeddings, so the cached column cannot be used; "
                'set texts = "fly"'
            )
        layers = list(flux_names.linear_layers(self.transformer()))
        for wanted in self.targets:
            if not flux_names.targets(layers, [wanted]):
                raise ValueError(f"targets: {wanted!r} matches no linear layer; there are {_few(layers)}")
        return self

    def layers(self) -> list[str]:
        """Linear layers of the transformer that get adapters."""
        return flux_names.targets(flux_names.linear_layers(self.transformer()), self.targets)


def _column(columns: Mapping[str, Mapping[str, Any]], field: str) -> Mapping[str, Any]:
    return columns[field.partition(".")[0]]


def _sizes(sizes: Any) -> str:
    return ", ".join(f"{width}×{height}" for width, height in sizes)


def _few(names: list[str]) -> str:
    return ", ".join(flux_names.kinds(names))
