"""BLIP-2 in batches: pictures times prompts in one greedy decoding, the vision tower run once a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from semiocity.errors import UserError


class Captioner:
    """A BLIP-2 with OPT or T5, loaded from a local folder. Li et al. 2023, arXiv:2301.12597.

    Raises UserError for a folder whose processor or configuration has no places for the picture in the prompt.
    """

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self.processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
        # transformers' annotations do not cover its own models.
        loader: Any = Blip2ForConditionalGeneration
        model = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype))
        self.model = model.to(device).eval()
        if not self.processor.num_query_tokens or self.model.config.image_token_index is None:
            raise UserError(f"{folder}: no num_query_tokens or image_token_index; fetch a newer revision of the model")
        self.device = device
        self.dtype = getattr(torch, dtype)

    @torch.inference_mode()
    def answers(self, pictures: Sequence[np.ndarray], prompts: Sequence[str], **generation: Any) -> list[list[str]]:
        """For each picture, uint8 [H, W, 3] of any size, the answers to all prompts.

        `generation` goes to transformers' `generate`: max_new_tokens, no_repeat_ngram_size, … Sampling is off.
        """
        tokens = self.tokens(pictures, prompts, **generation)
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        count = len(prompts)
        return [[text.strip() for text in texts[i * count : (i + 1) * count]] for i in range(len(pictures))]

    def tokens(self, pictures: Sequence[np.ndarray], prompts: Sequence[str], **generation: Any) -> torch.Tensor:
        """The tokens of all answers, int64 [pictures times prompts, length]."""
        features = self._features(pictures)
        ids, mask = self._prompts(prompts)
        images, questions = len(pictures), len(prompts)
        # Sequence i * questions + q asks prompt q about picture i.
        ids, mask = ids.repeat(images, 1), mask.repeat(images, 1)
        features = features.repeat_interleave(questions, 0)
        embeddings = self.model.get_input_embeddings()(ids)
        places = ids.eq(self.model.config.image_token_index).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(places, features.to(embeddings.dtype))
        # Given embeddings alone, `generate` returns what is new, for OPT as for T5.
        made: torch.Tensor = self.model.language_model.generate(
            inputs_embeds=embeddings, attention_mask=mask, do_sample=False, num_beams=1, **generation
        )
        return made

    def _features(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """What the language model gets to see of each picture: [pictures, query tokens, width]."""
        pixels = self.processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixels.to(self.device, self.dtype)).pooler_output

    def _prompts(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64 [prompts, length]: places for the picture, then the prompt.

        A decoder-only model goes on where the prompt ends, so its prompts are padded on the left.
        """
        tokenizer = self.processor.tokenizer
        side = "left" if self.model.config.use_decoder_only_language_model else "right"
        text = tokenizer(list(prompts), padding=True, padding_side=side, return_tensors="pt")
        shape = (len(prompts), self.processor.num_query_tokens)
        image = torch.full(shape, self.model.config.image_token_index, dtype=torch.long)
        ids = torch.cat([image, text["input_ids"]], 1)
        mask = torch.cat([torch.ones_like(image), text["attention_mask"]], 1)
        return ids.to(self.device), mask.to(self.device)
