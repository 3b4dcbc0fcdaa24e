"""Scores in plain words, each on a scale between what is bad and what is best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from semiocity.evaluate.charts import Mark, scale


@dataclass(frozen=True)
class Card:
    """One headline score."""

    title: str
    value: str
    verdict: str
    """The score beside what it can be compared with."""
    meaning: str
    marks: list[Mark]
    chart: Markup


def score_cards(scores: dict[str, Any]) -> list[Card]:
    """The headline scores of a scores.json."""
    return [_miou(scores["miou"]), _frechet(scores["frechet"]), _kid(scores["kid"]), _diversity(scores["diversity"])]


def _miou(score: dict[str, Any]) -> Card:
    value, ceiling = score["value"], score["ceiling"]
    marks = [
        Mark("noise", score["noise"], "bad"),
        Mark("mean colours", score["mean_colour"], "flat"),
        Mark("real images", ceiling, "good"),
        Mark("generated", value, "ours"),
    ]
    return Card(
        "Follows the layout",
        f"{value:.1%}",
        f"mIoU, {value / ceiling:.0%} of the {ceiling:.1%} that real images reach" if ceiling else "mIoU",
        "A segmenter that has learned from real images looks at the generated ones. So much of the layout does it find "
        "again, averaged over the classes.",
        marks,
        scale(marks, title="Mean intersection over union", top=1.0),
    )


def _frechet(score: dict[str, Any]) -> Card:
    marks = [
        Mark("real images", score["floor"], "good"),
        Mark("mean colours", score["mean_colour"], "flat"),
        Mark("noise", score["noise"], "bad"),
        Mark("generated", score["value"], "ours"),
    ]
    share = score["value"] / score["noise"] if score["noise"] else float("nan")
    return Card(
        "Looks like the real ones",
        f"{score['value']:.3g}",
        f"Fréchet distance, {share:.1%} of that of noise ({score['noise']:.3g}); less is better",
        "How far the generated images as a whole are from real ones, in the features of a network. Other real images "
        f"are at {score['floor']:.3g}.",
        marks,
        scale(marks, title="Fréchet distance, logarithmic", log=True),
    )


def _kid(score: dict[str, Any]) -> Card:
    marks = [
        Mark("real images", score["floor"], "good"),
        Mark("mean colours", score["mean_colour"], "flat"),
        Mark("noise", score["noise"], "bad"),
        Mark("generated", score["value"], "ours"),
    ]
    return Card(
        "The same, with few images",
        f"{score['value']:.3g}",
        f"KID ± {score['std']:.2g}; noise is at {score['noise']:.3g}; less is better",
        "A second distance to real images that is right on average however few images there are, while the Fréchet "
        "distance comes out too large.",
        marks,
        scale(marks, title="Kernel distance, logarithmic", log=True),
    )


def _diversity(score: dict[str, Any]) -> Card:
    meaning = "How much images of one layout differ. 0 would be the same image every time."
    if score["value"] is None:
        return Card("Varies", "–", "one image a layout: nothing to compare", meaning, [], Markup())
    marks = [Mark("generated, same layout", score["value"], "ours")]
    verdict = f"perceptual distance; values differ by {score['pixel_rms']:.0f} of 255"
    if score["between_layouts"] is not None:
        marks.append(Mark("real, different layouts", score["between_layouts"], "good"))
        meaning += f" Real images of different layouts are {score['between_layouts']:.3g} apart."
    return Card("Varies", f"{score['value']:.3g}", verdict, meaning, marks, scale(marks, title="Diversity"))
