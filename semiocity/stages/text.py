"""Column `text`: what Flux's two text encoders make of every caption, so that trainings need not hold them.

Field `embeddings`, a safetensors payload, fp16: `prompt` [tokens, width], T5's last hidden state of the padded caption
(no attention mask, as Flux is trained), and `pooled` [width], CLIP's. 4.2 MB a row for Flux.1 with 512 tokens: with
many rows, encoding while training is often cheaper (docs/flux.md). The empty prompt, which dropped captions become, is
no row: trainings compute it from the same weights.
Scalars: `tokens` and `clip_tokens`, the caption's own, of which those beyond 512 (or `tokens`) and 77 were cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from semiocity.stages import flux_parts, weights
from semiocity.stages.base import DatasetInfo, Made, Row, Stage, StageArgs, Tombstone

if TYPE_CHECKING:
    from semiocity.stages.text_encoders import TextEncoders


class FluxTextArgs(StageArgs):
    """`encoder = "flux"`."""

    encoder: Literal["flux"]
    model: Annotated[Path, weights.ModelFolder]
    """Folder of the Flux pipeline whose text encoders are used."""
    batch: int = Field(16, ge=1)
    caption: str = Field("caption.text", pattern=r"^[a-z][a-z0-9_]*\.[A-Za-z0-9_.]+$")
    """Field with the captions."""
    tokens: int = Field(512, ge=1, le=512)
    """T5 tokens of a prompt: 512 for FLUX.1-dev, 256 for schnell. The training's `model.text_tokens`."""


class FluxText(Stage):
    """T5-XXL (Raffel et al. 2020, arXiv 1910.10683) and CLIP-L (Radford et al. 2021, arXiv 2103.00020)."""

    name = "text"
    version = 1
    column = "text"
    Args = FluxTextArgs

    encoders: TextEncoders

    def needs(self) -> tuple[str, ...]:
        return (self.args.caption,)

    def fields(self) -> dict[str, str]:
        return {"embeddings": "text.safetensors"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"tokens": "int", "clip_tokens": "int"}

    def paths(self) -> list[str]:
        return [str(self.args.model)]

    def check(self) -> None:
        flux_parts.check(self.args.model, "args.model", flux_parts.TEXT)

    def model_revision(self) -> str | None:
        return flux_parts.text_revision(self.args.model)

    def load(self, info: DatasetInfo, device: str) -> None:
        from semiocity.models import flux_cost
        from semiocity.stages.text_encoders import TextEncoders

        self.encoders = TextEncoders.load(weights.resolve(self.args.model), device, self.args.dtype, self.args.tokens)
        width, pooled = self.encoders.widths
        print(f"text: {flux_cost.text_line(self.args.tokens, width, pooled)}", flush=True)

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.stages.images import decode_rows, payload
        from semiocity.stages.text_encoders import decode_caption, stored

        good, results = decode_rows(rows, lambda row: decode_caption(payload(row, self.args.caption)))
        if good:
            texts = [text for _, text in good]
            lengths = [self.encoders.tokenizers.lengths(text) for text in texts]
            for (place, _), data, (clip, t5) in zip(good, stored(self.encoders, texts), lengths, strict=True):
                results[place] = (
                    Tombstone("permanent", "the encoders gave values that are not finite")
                    if data is None
                    else Made({"embeddings": ("text.safetensors", data)}, {"tokens": t5, "clip_tokens": clip})
                )
        return [results[place] for place in range(len(rows))]


def facts_of(column: dict[str, Any]) -> dict[str, Any]:
    """Of a text column's manifest: the arguments it was made with; {} when it is no such column."""
    return dict(column["stage"]["args"]) if column["stage"]["name"] == FluxText.name else {}
