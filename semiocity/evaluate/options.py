"""Settings of `generate` and `evaluate`. Importable on a login node (pydantic only)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from semiocity.config import Job, Strict


class GenerateJob(Job):
    """Images for held-out layouts from a trained model (`jobs/generate.toml`)."""

    model: Path | None = None
    """Folder of an exported model. None takes the run's own, `runs/NAME/export`."""
    view: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(@[0-9a-f]+)?$")
    """A saved view to take layouts from, NAME or NAME@REVISION; None takes the whole dataset."""
    split: str = "val"
    """Split, of the view if there is one, whose layouts are painted."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many layouts of the split, in the dataset's order; None takes all."""
    images_per_layout: int = Field(5, ge=1, le=1000)
    sampler: Literal["ddim", "ancestral"] = "ddim"
    """`ddim` needs few steps; `ancestral` is the SDM paper's and uses a learned variance."""
    steps: int = Field(20, ge=1)
    """Denoising steps an image."""
    guidance: float = Field(1.0, ge=0)
    """1 is the conditional prediction alone; above it the layout is followed more strictly, at twice the cost."""
    eta: float = Field(0.0, ge=0, le=1)
    """Fresh noise in every DDIM step: 0 is deterministic, 1 as much as the ancestral sampler's."""
    seed: int = Field(0, ge=0)
    batch: int = Field(20, ge=1)
    """Images at a time. Part of the execution class: another value may change the last bit of a pixel."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights while sampling; the noisy image itself stays float32."""
    device: str = "auto"
    """`auto` is the GPU if there is one."""
    tasks: int = Field(1, ge=1)
    """Independent tasks that share the layouts."""

    @model_validator(mode="after")
    def _eta_is_ddims(self) -> GenerateJob:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta} but the sampler is {self.sampler}; only ddim has it")
        return self


class SegmenterSettings(Strict):
    """The judge: a small segmenter trained on the dataset's own train split."""

    width: int = Field(16, ge=4)
    """Channels at full resolution."""
    levels: int = Field(4, ge=1, le=8)
    """Resolutions; height and width must be multiples of 2^(levels-1)."""
    size: tuple[int, int] | None = None
    """Height and width in pixels at which everything is judged; None takes that of the generated images."""
    steps: int = Field(400, ge=1)
    batch: int = Field(16, ge=1)
    lr: float = Field(3e-3, gt=0)
    """Peak rate of AdamW, reached in a twentieth of the steps, falling to 0 by a cosine."""
    images: int = Field(4000, ge=1)
    """At most so many train images, spread evenly over the split."""
    seed: int = Field(0, ge=0)


class InceptionSettings(Strict):
    """Features of Inception v3, for Fréchet distances that others can compare with."""

    kind: Literal["inception"] = "inception"
    weights: Path
    """A state dict of torchvision's `inception_v3` (`.pth` or `.safetensors`)."""


class LocalSettings(Strict):
    """Features of the judge itself; needs no weights from elsewhere, compares only within one dataset."""

    kind: Literal["segmenter"] = "segmenter"


class FrechetSettings(Strict):
    """Which real images the Fréchet distance and KID compare with."""

    reference: Literal["train", "held_out"] = "train"
    """`train`: real train images, so the real held-out ones give the floor. `held_out`: the real images of the very
    layouts that were painted, as papers do; the floor is then that of as many train images."""
    images: int = Field(5000, ge=2)
    """At most so many real train images, spread evenly over the split."""


class KidSettings(Strict):
    """Kernel Inception distance: the mean over random subsets."""

    subsets: int = Field(50, ge=2)
    subset_images: int = Field(100, ge=2)
    """Images in a subset; fewer when a set is smaller."""


class EvaluateJob(Job):
    """Scores of a run's generated images (`jobs/evaluate.toml`)."""

    samples: Path | None = None
    """Folder with a samples manifest. None takes the run's own, `runs/NAME/samples`."""
    segmenter: SegmenterSettings = SegmenterSettings()
    extractor: LocalSettings | InceptionSettings = Field(LocalSettings(), discriminator="kind")
    frechet: FrechetSettings = FrechetSettings()
    kid: KidSettings = KidSettings()
    batch: int = Field(64, ge=1)
    """Images at a time when scoring."""
    device: str = "auto"
    """`auto` is the GPU if there is one."""
    seed: int = Field(0, ge=0)
    """Draws the subsets of KID and the noise images."""
