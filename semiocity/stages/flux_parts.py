"""A Flux pipeline's folder, as diffusers saves it: which parts are there, what they are, what names their contents.

Login-node code. The parts: transformer, vae, text_encoder (CLIP), text_encoder_2 (T5), their tokenizers, scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import digest
from semiocity.stages import model_files, weights

CLASSES = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "clip_text_model",
    "text_encoder_2": "t5",
}
"""Part with weights -> what its config.json must say it is."""
TOKENIZERS = ("tokenizer", "tokenizer_2")
TEXT = ("text_encoder", "text_encoder_2", *TOKENIZERS)


def check(folder: Path, where: str, parts: Sequence[str]) -> None:
    """Refuse a folder from which these parts could not be loaded. UserErrors begin with `where`."""
    model_files.require(folder, where)
    model_files.check_marked(folder, where, model_files.name_of(folder))
    for part in parts:
        inside = place(folder, part)
        if not inside.is_dir():
            raise UserError(
                f"{where}: {folder}: no folder {part}; this must be a whole Flux pipeline as diffusers saves it, with "
                f"model_index.json and a folder for each part; {model_files.remedy(folder)}"
            )
        if part in CLASSES:
            found = config(folder, part, where)
            kind = found.get("_class_name") or found.get("model_type")
            if kind != CLASSES[part]:
                raise UserError(f"{where}: {inside}: holds a {kind}, not a {CLASSES[part]}; this is no Flux pipeline")
            weights.check_files(inside, where)
        elif part in TOKENIZERS and not any((inside / name).is_file() for name in weights.TOKENIZERS):
            names = " or ".join(weights.TOKENIZERS)
            raise UserError(f"{where}: {inside}: {names} is missing; {model_files.remedy(inside)}")


def place(folder: Path, part: str) -> Path:
    """Where a part is."""
    return weights.resolve(folder) / part


def config(folder: Path, part: str, where: str) -> dict[str, Any]:
    """The configuration of a part. Raises UserError."""
    model_files.require(folder, where)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return weights.read_config(place(folder, part), name, where)


def revision(folder: Path, *parts: str) -> str:
    """Digest of the contents of some parts."""
    return digest({part: weights.revision(place(folder, part), plain=part not in CLASSES) for part in sorted(parts)})


def text_revision(folder: Path) -> str:
    """Digest of everything that turns a prompt into embeddings."""
    return revision(folder, *TEXT)


def vae_factor(vae: dict[str, Any]) -> int:
    """Pixels on a latent pixel's side, from the VAE's configuration: 8 for Flux.1."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))
