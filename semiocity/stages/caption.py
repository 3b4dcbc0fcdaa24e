"""Captioners. Column `caption`: field `text`, the caption. Scalars: `text`, its first 1,000 characters, to be searched;
`short`, its beginning; `captioner`; where captions come from label maps, `share.CLASS` of each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from semiocity.data.filter import LONGEST_TEXT
from semiocity.stages import weights
from semiocity.stages.base import DatasetInfo, Made, Row, Stage, StageArgs, Tombstone

if TYPE_CHECKING:
    from semiocity.stages.blip2 import Captioner


SCALARS: dict[str, Literal["int", "float", "str", "bool"]] = {"text": "str", "short": "str", "captioner": "str"}


def caption(text: str, short: str, captioner: str) -> Made:
    """A row of the column."""
    scalars = {"text": text[:LONGEST_TEXT], "short": short, "captioner": captioner}
    return Made({"text": ("txt", text.encode())}, scalars)


def share_names(classes: Sequence[str]) -> list[str]:
    """The scalar that holds each class's share: share.traffic_light for "traffic light"."""
    slugs = [re.sub(r"[^a-z0-9]+", "_", name).strip("_") for name in classes]
    return [f"share.{slug}" + (f"_{id}" if slugs.count(slug) > 1 else "") for id, slug in enumerate(slugs)]


class LabelCaptionArgs(StageArgs):
    """`captioner = "labels"`."""

    captioner: Literal["labels"]
    device: Literal["cpu"] = "cpu"
    dtype: Literal["float32"] = "float32"
    batch: int = Field(64, ge=1)


class LabelCaption(Stage):
    """Captions from label maps: what is there, how much, where; how many, where instance maps exist. No weights."""

    name = "caption"
    version = 2
    column = "caption"
    Args = LabelCaptionArgs

    def needs(self) -> tuple[str, ...]:
        return ("base.label",)

    def wants(self) -> tuple[str, ...]:
        return ("base.instance",)

    def fields(self) -> dict[str, str]:
        return {"text": "txt"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return SCALARS | dict.fromkeys(share_names(self.info.classes) if self.info else (), "float")

    def load(self, info: DatasetInfo, device: str) -> None:
        self.info = info

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.stages.images import decode_rows

        good, results = decode_rows(rows, self._describe)
        results |= dict(good)
        return [results[place] for place in range(len(rows))]

    def _describe(self, row: Row) -> Made:
        from semiocity.stages.images import decode_ids, payload
        from semiocity.stages.label_facts import measure, shares
        from semiocity.stages.label_sentences import describe

        assert self.info is not None
        label = decode_ids(payload(row, "base.label"), "label")
        found = row.fields.get("base.instance")
        instance = decode_ids(found, "instance") if found is not None else None
        facts = measure(label, instance, len(self.info.classes), self.info.ignore_id)
        made = caption(*describe(facts, self.info.classes, row.scalars.get("base.time"), row.key), "labels")
        measured = shares(label, len(self.info.classes), self.info.ignore_id)
        made.scalars.update(zip(share_names(self.info.classes), measured))
        return made


class Blip2CaptionArgs(StageArgs):
    """`captioner = "blip2"`."""

    captioner: Literal["blip2"]
    model: Annotated[Path, weights.ModelFolder]
    """Folder of a BLIP-2 with OPT or T5, as `save_pretrained` or a hub download leaves it."""
    batch: int = Field(16, ge=1)
    prompts: tuple[str, ...] = Field(("",), min_length=1)
    """What the language model is given after the picture, as it is: "" for a plain caption, or questions such as
    "Question: what is the weather? Answer:". The vision tower runs once a picture however many there are."""
    max_new_tokens: int = Field(40, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    no_repeat_ngram: int = Field(3, ge=0)
    """No run of so many tokens comes twice in an answer; 0 switches it off."""
    repetition_penalty: float = Field(1.0, ge=1)


class Blip2Caption(Stage):
    """Captions by BLIP-2 (Li et al. 2023, arXiv:2301.12597), decoded greedily.

    With one prompt `text` is its answer. With several, it is the answers one a line, `short` is the first, and
    the field `answers` holds them beside their prompts.
    """

    name = "caption"
    version = 2
    column = "caption"
    Args = Blip2CaptionArgs

    captioner: Captioner

    def needs(self) -> tuple[str, ...]:
        return ("base.image",)

    def fields(self) -> dict[str, str]:
        return {"text": "txt"} | ({"answers": "answers.json"} if len(self.args.prompts) > 1 else {})

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return SCALARS

    def paths(self) -> list[str]:
        return [str(self.args.model)]

    def check(self) -> None:
        weights.check(self.args.model, "args.model", model_type="blip-2", tokenizer=True)
        weights.check_blip2(self.args.model, "args.model")

    def model_revision(self) -> str | None:
        return weights.revision(self.args.model)

    def load(self, info: DatasetInfo, device: str) -> None:
        from semiocity.stages.blip2 import Captioner

        self.captioner = Captioner(weights.resolve(self.args.model), device, self.args.dtype)

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.stages.images import decode_rgb, decode_rows, payload

        good, results = decode_rows(rows, lambda row: decode_rgb(payload(row, "base.image")))
        if good:
            answers = self.captioner.answers(
                [pixels for _, pixels in good],
                self.args.prompts,
                max_new_tokens=self.args.max_new_tokens,
                min_new_tokens=self.args.min_new_tokens,
                no_repeat_ngram_size=self.args.no_repeat_ngram,
                repetition_penalty=self.args.repetition_penalty,
            )
            results |= {place: self._made(texts) for (place, _), texts in zip(good, answers, strict=True)}
        return [results[place] for place in range(len(rows))]

    def _made(self, answers: list[str]) -> Made | Tombstone:
        from semiocity.files import canonical

        texts = [" ".join(answer.split()) for answer in answers]
        if not any(texts):
            return Tombstone("permanent", "the model answered nothing")
        made = caption("\n".join(text for text in texts if text), texts[0], "blip2")
        if len(texts) > 1:
            pairs: list[dict[str, Any]] = [
                {"prompt": p, "answer": a} for p, a in zip(self.args.prompts, texts, strict=True)
            ]
            made.fields["answers"] = ("answers.json", canonical(pairs).encode())
        return made
