"""What a stage's model holds and what a batch takes, found without memory, weights or a GPU: the stage's own code on
torch's meta device, where tensors have shapes but no contents.

    python -m semiocity.stages.footprint < question.json      prints the answer as one line of JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from semiocity.live_bytes import LiveBytes
from semiocity.stages import flux_parts, weights
from semiocity.stages.base import Stage, make_stage

KEPT = 0.25
"""Share of SAM's masks that is taken to pass the filters; they wait in fp32 until a picture's points are all done."""


def footprint(stage: Stage, batch: int) -> dict[str, Any]:
    """{"parameters", "weights" (bytes of them and of buffers), "pass" (the most bytes beyond those while `batch` rows
    are made), "kept" (bytes of results that wait, an estimate)}. All zero for stages without a model.
    """
    made = MODELS.get(type(stage).__name__)
    if made is None:
        return {"parameters": 0, "weights": 0, "pass": 0, "kept": 0}
    modules, work, kept = made(stage.args, batch)
    live = LiveBytes(twice=stage.args.device == "cpu")
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            live.ignore(tensor)
    with torch.inference_mode(False), torch.no_grad(), live:
        work()
    return {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "weights": sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers())),
        "pass": live.peak,
        "kept": kept,
    }


Made = tuple[list[nn.Module], Callable[[], Any], int]
"""Modules on the meta device, what makes a batch with them, and bytes of results that wait meanwhile."""


def _empty(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        made = make()
    return made.to("meta", dtype).eval().requires_grad_(False)


def _blip2(args: Any, batch: int) -> Made:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
    from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

    from semiocity.stages.blip2 import Captioner

    folder = weights.resolve(args.model)
    captioner = Captioner.__new__(Captioner)
    captioner.processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
    captioner.dtype, captioner.device = getattr(torch, args.dtype), "meta"
    config: Any = Blip2Config.from_pretrained(folder, local_files_only=True)
    captioner.model = _empty(lambda: Blip2ForConditionalGeneration(config), captioner.dtype)
    pictures = [np.zeros((64, 64, 3), np.uint8)] * batch

    class Counted(StoppingCriteria):
        """Every answer becomes as long as it may; without contents, none would ever be seen to be finished."""

        tokens = 0

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            self.tokens += 1
            if self.tokens == args.max_new_tokens:
                raise _Finished
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device="meta")

    def work() -> None:
        with suppress(_Finished):  # repeated words are looked for in contents, and left out
            stop = StoppingCriteriaList([Counted()])
            captioner.tokens(pictures, args.prompts, max_new_tokens=args.max_new_tokens, stopping_criteria=stop)

    return [captioner.model], work, 0


class _Finished(Exception):
    pass


def _sam(args: Any, batch: int) -> Made:
    from transformers import SamConfig, SamModel, SamProcessor

    from semiocity.stages.sam import point_grid

    folder = weights.resolve(args.model)
    processor: Any = SamProcessor.from_pretrained(folder, local_files_only=True).image_processor
    dtype = getattr(torch, args.dtype)
    config: Any = SamConfig.from_pretrained(folder, local_files_only=True)
    model = _empty(lambda: SamModel(config), dtype)
    side = processor.pad_size["width"]
    points = len(point_grid(args.points_per_side))
    width = 4 * config.vision_config.image_size // config.vision_config.patch_size

    def work() -> None:
        pixels: Any = torch.empty(batch, 3, side, side, device="meta", dtype=dtype)
        embeddings = model.get_image_embeddings(pixels)
        if args.device != "cpu":
            pixels = None  # what the processor made is in main memory
        prompts = torch.empty(batch, min(points, args.points_per_batch), 1, 2, device="meta")
        decoded: Any = None
        for _ in range(2):  # the masks of some points wait while the next are decoded
            decoded = model(image_embeddings=embeddings, input_points=prompts, multimask_output=True)
        del pixels, decoded

    return [model], work, int(KEPT * batch * points * 3 * width * width * 4)


def _vae(args: Any, batch: int) -> Made:
    from diffusers import AutoencoderKL

    from semiocity.stages.latent_vae import Encoder

    loader: Any = AutoencoderKL
    config = loader.load_config(flux_parts.place(args.model, "vae"), local_files_only=True)
    encoder = Encoder.__new__(Encoder)
    encoder.device, encoder.dtype = "meta", getattr(torch, args.dtype)
    encoder.vae = _empty(lambda: loader.from_config(config), encoder.dtype)
    encoder.channels = encoder.vae.config.latent_channels
    width, height = max(args.sizes, key=lambda size: size[0] * size[1])
    pictures = [np.zeros((height, width, 3), np.uint8)] * batch
    return [encoder.vae], lambda: encoder.moments(pictures, args.flip), 0


def _texts(args: Any, batch: int) -> Made:
    from semiocity.stages.text_encoders import CLIP, T5, TextEncoders, Tokenizers, load_encoder

    folder = weights.resolve(Path(args.model))
    with torch.device("meta"):
        clip, t5 = (load_encoder(folder, part, "meta", getattr(torch, args.dtype)) for part in (CLIP, T5))
    encoders = TextEncoders(Tokenizers(folder, args.tokens), clip, t5, "meta")
    return [clip, t5], lambda: encoders.encode(["a"] * batch), 0


MODELS: dict[str, Callable[[Any, int], Made]] = {
    "Blip2Caption": _blip2,
    "SamSegment": _sam,
    "FluxLatent": _vae,
    "FluxText": _texts,
}
"""Class of a stage → what it loads and does; the others have no model."""


def main() -> None:
    """Answer {"stage": NAME, "args": {…}, "batches": [8, 4]}: a list of footprints."""
    question = json.load(sys.stdin)
    stage = make_stage(question["stage"], question["args"])
    print(json.dumps([footprint(stage, batch) for batch in question["batches"]]))


if __name__ == "__main__":
    main()
