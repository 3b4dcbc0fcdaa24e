"""A Flux pipeline of a few thousand random weights, saved as the real one is: every part through its own class.

`python tests/tiny_flux.py FOLDER` makes one, for rehearsals without a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny_models import randomise
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

WORDS = [
    "a street with tall buildings and a red car under a grey sky",
    "sky road building tree person car window door roof lamp",
    "in the middle on the left on the right at the bottom about a third most of it",
]
TOKENS = 16
CLIP_TOKENS = 20
WIDTH = 32
POOLED = 16
CHANNELS = 4
FACTOR = 8


def save_flux(
    folder: Path,
    seed: int = 0,
    guidance: bool = True,
    blocks: tuple[int, int] = (1, 2),
    heads: int = 2,
    vae_scale: float = 0.2,
) -> Path:
    """A pipeline folder. Pictures of 32 pixels are 2×2 tokens of 16 channels; prompts are 16 tokens."""
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    randomise(transformer, seed, 0.08)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        sample_size=32,
    )
    randomise(vae, seed + 1, vae_scale)
    clip_tokenizer, t5_tokenizer = tokenizers()
    clip: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=POOLED,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    randomise(clip, seed + 2)
    t5: Any = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    randomise(t5, seed + 3)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    (folder / "LICENSE.md").write_text("A licence.\n")
    return folder


def tokenizers() -> tuple[Any, Any]:
    """CLIP's, by letters, and T5's, a trained unigram."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",.")
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=CLIP_TOKENS
    )
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(WORDS, trainer)
    pieces = [(piece, score) for piece, score in json.loads(inner.to_str())["model"]["vocab"]]
    return clip, T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


if __name__ == "__main__":
    import sys

    print(save_flux(Path(sys.argv[1])))
