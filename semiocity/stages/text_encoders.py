"""Flux's text encoders: T5 for a sequence of states, CLIP for one pooled vector (`FluxPipeline.encode_prompt`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from semiocity.stages.base import BadRow

CLIP, T5 = "text_encoder", "text_encoder_2"
STORED = np.float16


class Tokenizers:
    """Both tokenizers. Prompts are padded to full length; no attention mask is used anywhere."""

    def __init__(self, folder: Path, tokens: int) -> None:
        loader: Any = AutoTokenizer
        self.clip = loader.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.t5 = loader.from_pretrained(folder / "tokenizer_2", local_files_only=True)
        self.tokens = tokens

    def ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids for CLIP [b, 77] and for T5 [b, tokens]."""
        clip = self.clip(list(texts), padding="max_length", max_length=self.clip.model_max_length, truncation=True)
        t5 = self.t5(list(texts), padding="max_length", max_length=self.tokens, truncation=True)
        return np.array(clip["input_ids"], np.int64), np.array(t5["input_ids"], np.int64)

    def lengths(self, text: str) -> tuple[int, int]:
        """Tokens of a text for CLIP and T5, before anything is cut off."""
        return len(self.clip(text, verbose=False)["input_ids"]), len(self.t5(text, verbose=False)["input_ids"])


def load_encoder(folder: Path, part: str, device: str | torch.device, dtype: torch.dtype) -> Any:
    """`CLIP` or `T5` of a pipeline, frozen and in eval mode; safetensors only."""
    loader: Any = CLIPTextModel if part == CLIP else T5EncoderModel
    if torch.get_default_device().type == "meta":  # `semiocity fit`: shapes alone, and weights are not read
        made: Any = loader(loader.config_class.from_pretrained(folder / part, local_files_only=True))
        return made.to(dtype=dtype).eval().requires_grad_(False)
    model = loader.from_pretrained(folder / part, local_files_only=True, use_safetensors=True, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def encode_t5(t5: Any, ids: Tensor) -> Tensor:
    """[b, tokens] -> last hidden state [b, tokens, width]."""
    return t5(ids, output_hidden_states=False)[0]


def encode_clip(clip: Any, ids: Tensor) -> Tensor:
    """[b, 77] -> pooled [b, width]."""
    return clip(ids, output_hidden_states=False).pooler_output


@dataclass
class TextEncoders:
    """Tokenizers and encoders together."""

    tokenizers: Tokenizers
    clip: Any
    t5: Any
    device: str | torch.device

    @classmethod
    def load(cls, folder: Path, device: str | torch.device, dtype: str, tokens: int) -> TextEncoders:
        kind = getattr(torch, dtype)
        clip, t5 = (load_encoder(folder, part, device, kind) for part in (CLIP, T5))
        return cls(Tokenizers(folder, tokens), clip, t5, device)

    @property
    def widths(self) -> tuple[int, int]:
        """Of a T5 state, and of CLIP's pooled vector."""
        return self.t5.config.d_model, self.clip.config.hidden_size

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompt states [b, tokens, width] and pooled vectors [b, width]."""
        clip_ids, t5_ids = (torch.from_numpy(ids).to(self.device) for ids in self.tokenizers.ids(texts))
        return encode_t5(self.t5, t5_ids), encode_clip(self.clip, clip_ids)


def stored(encoders: TextEncoders, texts: Sequence[str]) -> list[bytes | None]:
    """The payloads of captions; None where a value is not finite."""
    prompts, pooled = (part.float().cpu().numpy().astype(STORED) for part in encoders.encode(texts))
    return [
        save({"prompt": np.ascontiguousarray(one), "pooled": np.ascontiguousarray(other)})
        if np.isfinite(one).all() and np.isfinite(other).all()
        else None
        for one, other in zip(prompts, pooled, strict=True)
    ]


def read_stored(data: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """`prompt` [tokens, width] and `pooled` [width] of a payload. ValueError when it is damaged."""
    try:
        found = load(data)
        return found["prompt"], found["pooled"]
    except Exception as error:  # safetensors raises its own kind
        raise ValueError(f"no text embeddings: {error}") from None


def decode_caption(data: bytes) -> str:
    """A caption with its lines joined. Raises BadRow."""
    try:
        return " ".join(data.decode().split())
    except UnicodeDecodeError as error:
        raise BadRow(f"caption is no UTF-8: {error.reason}") from None
