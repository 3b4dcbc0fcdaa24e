"""Column `latent`: what a VAE makes of every picture, so that trainings need not run it.

Field `moments`, a safetensors payload with one tensor, fp16 [variants, channels, height, width] in latent pixels:
`moments` (mean and logvar of the posterior side by side in the channels; trainings draw from it) or `mean` alone.
Variant 0 is the picture, variant 1 its mirror image (which is not the mirrored latent). Nothing is scaled or shifted.
Scalars: `width` and `height`, the size in pixels that the picture was brought to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from semiocity.data.buckets import BucketOptions, Side
from semiocity.stages import flux_parts, weights
from semiocity.stages.base import BadRow, DatasetInfo, Made, Row, Stage, StageArgs, Tombstone

if TYPE_CHECKING:
    from semiocity.stages.latent_vae import Encoder


class FluxLatentArgs(StageArgs):
    """`encoder = "flux"`."""

    encoder: Literal["flux"]
    model: Annotated[Path, weights.ModelFolder]
    """Folder of the Flux pipeline whose VAE encodes."""
    batch: int = Field(8, ge=1)
    size: Side | tuple[Side, Side] | None = None
    """Side, or [height, width], in pixels that every picture is cropped and resized to: the training's `data.size`."""
    buckets: BucketOptions | None = None
    """Or aspect buckets, the training's `data.buckets`: a picture is brought to the size of its bucket."""
    flip: bool = False
    """Encode the mirror image too, for trainings with `data.flip`. Twice the bytes and the work."""
    keep: Literal["moments", "mean"] = "moments"
    """`mean` halves the bytes; trainings then see the same latent each time. The posterior is narrow: its deviation is
    some hundredths of the latents' own."""

    @model_validator(mode="after")
    def _one_way_or_the_other(self) -> FluxLatentArgs:
        if (self.size is None) == (self.buckets is None):
            raise ValueError("give either size = SIDE (or [height, width]) or buckets = { … }, as the training does")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each bucket, or the one size."""
        if self.buckets is not None:
            return self.buckets.resolved()
        assert self.size is not None
        return ((self.size, self.size) if isinstance(self.size, int) else (self.size[1], self.size[0]),)


class FluxLatent(Stage):
    """Latents of Flux.1's VAE (Rombach et al. 2022, arXiv 2112.10752, section 3.1, with 16 channels)."""

    name = "latent"
    version = 1
    column = "latent"
    Args = FluxLatentArgs

    encoder: Encoder

    def needs(self) -> tuple[str, ...]:
        return ("base.image",)

    def fields(self) -> dict[str, str]:
        return {"moments": "latent.safetensors"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"width": "int", "height": "int"}

    def paths(self) -> list[str]:
        return [str(self.args.model)]

    def check(self) -> None:
        flux_parts.check(self.args.model, "args.model", ("vae",))
        stride = 2 * flux_parts.vae_factor(flux_parts.config(self.args.model, "vae", "args.model"))
        check_sides(self.args.sizes, stride, "args.buckets" if self.args.buckets else "args.size")

    def model_revision(self) -> str | None:
        return flux_parts.revision(self.args.model, "vae")

    def load(self, info: DatasetInfo, device: str) -> None:
        from semiocity.models import flux_cost
        from semiocity.stages.latent_vae import Encoder

        self.encoder = Encoder(flux_parts.place(self.args.model, "vae"), device, self.args.dtype)
        factor = self.encoder.factor
        for width, height in self.args.sizes:
            said = flux_cost.latent_line(width, height, factor, self.encoder.channels, self._tensors())
            print(f"latent {width}×{height}: {said}", flush=True)

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.stages.images import decode_rows, payload
        from semiocity.stages.latent_vae import fitted

        good, results = decode_rows(rows, lambda row: fitted(payload(row, "base.image"), self.args.sizes))
        # Pictures of one size share a call; which of them do is decided by the batch alone.
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, (_, pixels) in enumerate(good):
            by_size.setdefault(pixels.shape[:2], []).append(i)
        for (height, width), places in sorted(by_size.items()):
            payloads = self.encoder.encode([good[i][1] for i in places], self.args.flip, self.args.keep)
            for i, data in zip(places, payloads, strict=True):
                results[good[i][0]] = (
                    Tombstone("permanent", str(data))
                    if isinstance(data, BadRow)
                    else Made({"moments": ("latent.safetensors", data)}, {"width": width, "height": height})
                )
        return [results[place] for place in range(len(rows))]

    def _tensors(self) -> int:
        """Tensors of the latent's size that are kept of a picture."""
        return (2 if self.args.flip else 1) * (2 if self.args.keep == "moments" else 1)


def check_sides(sizes: tuple[tuple[int, int], ...], stride: int, where: str) -> None:
    """UserError for a width or height that is no multiple of `stride`."""
    from semiocity.errors import UserError

    for size in sizes:
        for side in size:
            if side % stride:
                below = side // stride * stride
                near = f"{below} or {below + stride}" if below else str(stride)
                raise UserError(
                    f"{where}: {size[0]}×{size[1]}: {side} is no multiple of {stride}, the side of a token; "
                    f"{near} would do"
                )


def facts_of(column: dict[str, Any]) -> dict[str, Any]:
    """Of a latent column's manifest: the arguments it was made with, checked; {} when it is no such column."""
    return dict(column["stage"]["args"]) if column["stage"]["name"] == FluxLatent.name else {}
