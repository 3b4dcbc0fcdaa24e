"""Tiny models with random weights, saved as real ones are: `from_pretrained` loads them from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    T5Config,
)

SENTENCES = [
    "a street with tall buildings and a red car",
    "two people on the pavement at night",
    "Question: what is the weather? Answer: sunny",
    "Question: what are the buildings made of? Answer: brick and glass",
]
QUERY_TOKENS = 4
WIDTH = 64


def randomise(model: torch.nn.Module, seed: int, scale: float = 0.2) -> None:
    """Give every parameter its own values: as they are made, some are all zero and would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else scale * noise)


def save_blip2(folder: Path, language: str, seed: int = 0) -> Path:
    """A BLIP-2 with a language model of type `opt` or `t5`; pictures are 32 pixels, four query tokens."""
    tokenizer = _opt_tokenizer() if language == "opt" else _t5_tokenizer()
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, QUERY_TOKENS)
    vocabulary = len(tokenizer)
    if language == "opt":
        text: dict[str, Any] = OPTConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            ffn_dim=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ).to_dict()
    else:
        text = T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=16,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ).to_dict() | {"decoder_start_token_id": tokenizer.pad_token_id}
    config = Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "vocab_size": 50,
        },
        text_config=text,
        num_query_tokens=QUERY_TOKENS,
        image_token_index=tokenizer.vocab["<image>"],
    )
    model: Any = Blip2ForConditionalGeneration(config)
    randomise(model, seed)
    with torch.no_grad():
        # So that the answer depends on the picture, and not on the prompt alone.
        model.vision_model.embeddings.patch_embedding.weight.mul_(4)
        model.language_projection.weight.mul_(12)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _opt_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as OPT has it; every text begins with </s>."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="</s>", eos_token="</s>", padding_side="left"
    )


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram as T5 has it; every text ends with </s>."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


SAM_SIZE = 64
BACKGROUND = 3.0
"""Larger gives smaller patches."""


def _make_masks_plausible(model: Any) -> None:
    """Patches with sharp edges on a background, and predicted IoUs around 0.9, as a trained model gives."""
    decoder = model.mask_decoder
    with torch.no_grad():
        for layer in (model.vision_encoder.patch_embed.projection, decoder.upscale_conv1, decoder.upscale_conv2):
            layer.weight.mul_(3)
        # Channel 0 is the same everywhere; its weight in every mask is the background.
        decoder.upscale_conv2.weight[:, 0] = 0
        decoder.upscale_conv2.bias[0] = 3
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(8)
            mlp.proj_out.weight[0] = 0
            mlp.proj_out.bias[0] = -BACKGROUND
        decoder.iou_prediction_head.proj_out.weight.mul_(0.3)
        decoder.iou_prediction_head.proj_out.bias.fill_(0.9)


def save_sam(folder: Path, seed: int = 0) -> Path:
    """A SAM whose pictures are 64 pixels, its masks 16."""
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SAM_SIZE,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SAM_SIZE, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    model = SamModel(config)
    randomise(model, seed)
    _make_masks_plausible(model)
    model.save_pretrained(folder)
    size = {"height": SAM_SIZE, "width": SAM_SIZE}
    quarter = {"height": SAM_SIZE // 4, "width": SAM_SIZE // 4}
    SamProcessor(
        SamImageProcessor(
            size={"longest_edge": SAM_SIZE},
            pad_size=size,
            mask_size={"longest_edge": SAM_SIZE // 4},
            mask_pad_size=quarter,
        )
    ).save_pretrained(folder)
    return folder
