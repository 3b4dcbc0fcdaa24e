"""Training Flux.1: what the tasks `flux-full` and `flux-lora` share. The mathematics is in `semiocity.models.flux`.

The transformer is diffusers' own. Texts and latents come from columns or are encoded here, from frozen parts of the
same pipeline folder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from semiocity.data.decode import decode_cropped
from semiocity.data.loader import Arrays, Room, empty, stack, to_bytes, to_unit
from semiocity.data.order import Batch
from semiocity.errors import UserError
from semiocity.models import attention, flux, flux_cost, flux_names
from semiocity.models.flux_step_cost import step_flops
from semiocity.stages import flux_parts, weights
from semiocity.stages.base import BadRow
from semiocity.stages.latent_vae import load_vae, posterior, read_payload
from semiocity.stages.text_encoders import (
    CLIP,
    T5,
    TextEncoders,
    Tokenizers,
    decode_caption,
    encode_clip,
    encode_t5,
    load_encoder,
    read_stored,
)
from semiocity.train.noise import fixed_normal, generator
from semiocity.train.options import TrainJob
from semiocity.train.tasks import flux_shapes
from semiocity.train.tasks.base import DatasetFacts, Loss, Modules, Task, Tensors
from semiocity.train.tasks.flux_options import FluxOptions

TRANSFORMER = "transformer"
QUARTERS = 4


class FluxTask(Task):
    """One phase, whose modules hold `transformer`; `vae` and text encoders are frozen or not there at all."""

    def __init__(self, job: TrainJob, facts: DatasetFacts) -> None:
        super().__init__(job, facts)
        options = job.options
        assert isinstance(options, FluxOptions)
        self.options = options
        if not flux_shapes.wanted():
            attention.require(options.attention)
        self.folder = weights.resolve(options.pretrained)
        self.fly_latents, self.fly_texts = options.latents == "fly", options.texts == "fly"
        self.dtype = torch.bfloat16 if job.zero.precision == "bf16" else torch.float32
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.config = options.transformer()
        vae = flux_parts.config(self.folder, "vae", "model.pretrained")
        self.factor, self.channels = flux_parts.vae_factor(vae), int(vae["latent_channels"])
        self.scaling = (float(vae["scaling_factor"]), float(vae["shift_factor"] or 0.0))
        self.shift = shift_of(self.folder)
        self.tokenizers = Tokenizers(self.folder, options.text_tokens) if self.fly_texts else None
        self.known: dict[str, tuple[Tensor, Tensor]] = {}
        """Embeddings of the empty prompt and of the grids' prompts, where texts come from a column."""

    def frozen(self) -> Mapping[str, nn.Module]:
        parts: dict[str, nn.Module] = {}
        if self.fly_latents or self.job.sample_every:
            dtype = getattr(torch, self.options.vae_dtype)
            parts["vae"] = (
                flux_shapes.vae(self.folder, dtype)
                if flux_shapes.wanted()
                else load_vae(self.folder / "vae", self.device, dtype)
            )
        if self.fly_texts:
            parts |= {part: self._encoder(part) for part in (CLIP, T5) if part not in self.trained_parts}
        else:
            self._know(["", *self.options.sample_prompts])
        return parts

    @property
    def grid_of_rows(self) -> bool:
        return not self.options.sample_prompts

    @property
    def grid_title(self) -> str:
        return "real, sample" if self.grid_of_rows else "samples of the prompts"

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Parts of the pipeline that the phase trains."""
        return (TRANSFORMER,)

    def start_bytes(self, modules: Modules) -> int:
        """The transformer is read in `dtype`, whatever it is stored as then; cached texts need the encoders once."""
        held = flux_shapes.size(modules.values())
        if not self.fly_texts:
            held += flux_shapes.size(self._encoder(part) for part in (CLIP, T5))
        return max(held, flux_names.count(self.config) * self.dtype.itemsize)

    def frozen_digests(self) -> Mapping[str, str]:
        return {part: flux_parts.revision(self.folder, part) for part in flux_parts.CLASSES}

    def notes(self, rows: int) -> list[str]:
        options, samples = self.options, self.job.steps * self.job.global_batch
        sizes = self.job.data.bucket_sizes or (self.job.data.height_width[::-1],)
        pixels = sum(w * h for w, h in sizes) / len(sizes)
        side = int(pixels**0.5)
        variants = 2 if self.job.data.flip else 1
        size = flux_cost.latent_bytes(side, side, self.factor, self.channels, 2 * variants)
        encode = flux_cost.vae_flops(side, side, self.factor)
        text = flux_cost.text_bytes(
            options.text_tokens, self.config["joint_attention_dim"], self.config["pooled_projection_dim"]
        )
        said = flux_cost.text_flops(options.text_tokens)
        tokens = round(pixels / (flux.PATCH * self.factor) ** 2)
        step = flux_cost.training_flops(self.config, tokens, options.text_tokens) / 1e12
        notes = [
            f"{step:,.3g} TFLOP an image ({tokens} image tokens and {options.text_tokens} of text), all weights trained"
        ]
        notes.append(
            flux_cost.choice_line("latents", options.latents, flux_cost.choice(size, encode, rows, samples, variants))
        )
        if not set(self.trained_parts) & {CLIP, T5}:
            notes.append(flux_cost.choice_line("texts", options.texts, flux_cost.choice(text, said, rows, samples)))
        return notes

    # -- loading ------------------------------------------------------------------------------------------------------

    def _transformer(self) -> Any:
        """The pretrained transformer, on the device: every rank would else need its size in host memory. The weights
        are stored in bf16, so that nothing is lost when they are loaded in it."""
        loader: Any = FluxTransformer2DModel
        if flux_shapes.wanted():
            model = flux_shapes.transformer(self.config, self.dtype)
        else:
            model = loader.from_pretrained(
                self.folder / TRANSFORMER,
                local_files_only=True,
                use_safetensors=True,
                dtype=self.dtype,
                device_map={"": self.device} if self.device.type == "cuda" else None,
            )
            attention.choose(model, self.options.attention)
        flux.recompute_blocks(model, None if self.options.recompute == "all" else self.options.recompute)
        return model.requires_grad_(False)

    def _encoder(self, part: str) -> Any:
        if flux_shapes.wanted():
            return flux_shapes.encoder(self.folder, part, self.dtype)
        return load_encoder(self.folder, part, self.device, self.dtype)

    def _know(self, texts: Sequence[str]) -> None:
        """Embed some prompts; the encoders are let go of again."""
        if flux_shapes.wanted():
            self.known = {text: flux_shapes.texts(self, 1) for text in texts}
            return
        encoders = TextEncoders.load(
            self.folder, self.device, str(self.dtype).removeprefix("torch."), self.options.text_tokens
        )
        for text in texts:
            prompt, pooled = encoders.encode([text])
            # Stored ones went through fp16.
            self.known[text] = prompt.half().clone(), pooled.half().clone()
        del encoders
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- reading ------------------------------------------------------------------------------------------------------

    def decode(self, row: Mapping[str, bytes | None], size: tuple[int, int], room: Room) -> Arrays:
        """`moments` or `mean` [variants, c, h, w] fp16, or `image` [H, W, 3]; `prompt` and `pooled`, or token ids
        `clip_ids` and `t5_ids`."""
        arrays: Arrays = {}
        if self.fly_latents:
            height, width = size
            room_ = room("image", (height, width, 3), np.uint8)
            arrays["image"] = decode_cropped(_payload(row, "image"), (width, height), room_)
        else:
            name, variants = read_payload(_payload(row, "latent"))
            found = tuple(side * self.factor for side in variants.shape[-2:])
            if found != size:
                raise UserError(
                    f"its latent is that of {found[1]}×{found[0]} pixels, this training wants {size[1]}×{size[0]}; run "
                    "`semiocity latent` with the same size or buckets"
                )
            if self.job.data.flip and len(variants) < 2:
                raise UserError("its latent has no mirror image; run `semiocity latent` with args.flip = true")
            arrays[name] = variants if self.job.data.flip else variants[:1]
        if self.tokenizers is None:
            arrays["prompt"], arrays["pooled"] = read_stored(_payload(row, "embeddings"))
        else:
            (arrays["clip_ids"],), (arrays["t5_ids"],) = self.tokenizers.ids([self._caption(row["caption"])])
        return arrays

    def _caption(self, data: bytes | str | None) -> str:
        if data is None:
            if self.options.missing_caption == "refuse":
                raise UserError('has no caption; leave such rows out by a view, or set model.missing_caption = "empty"')
            return ""
        try:
            return decode_caption(data.encode() if isinstance(data, str) else data)
        except BadRow as error:
            raise ValueError(str(error)) from None

    def collate(self, batch: Batch, decoded: Sequence[Arrays]) -> Tensors:
        """What `decode` gave, stacked, with `weight` [b], `share` [b] (quantile of the time), `drop` [b], `place` [b]
        (in the global batch, or in the grid), `noise` [b, c, h, w], and for drawn latents `draw` of the same shape.
        Latents are picked and scaled here."""
        shape = (len(batch.rows), *self._latent_shape(decoded[0]))
        draws = np.empty((len(batch.rows), 3))
        noise = empty(decoded, shape, np.float32)
        drawn = np.empty(shape, np.float32) if "mean" not in decoded[0] else None
        for i, row in enumerate(batch.rows):
            random = generator(self.job.seed, batch.step, int(row))
            draws[i] = random.random(3)
            random.standard_normal(out=noise[i], dtype=np.float32)
            if drawn is not None:
                random.standard_normal(out=drawn[i], dtype=np.float32)
        tensors = {name: stack(decoded, name) for name in decoded[0]}
        mirrored = torch.from_numpy(draws[:, 2] < 0.5) & self.job.data.flip
        if self.fly_latents:
            image = tensors["image"]
            tensors["image"] = torch.where(mirrored.view(-1, 1, 1, 1), image.flip(2), image)
        else:
            tensors |= self._pick(tensors, mirrored)
        if drawn is not None:
            tensors["draw"] = torch.from_numpy(drawn)
        share = draws[:, 0]
        if self.options.stratified_t:
            share = (batch.places + share) / self.job.global_batch
        drop = torch.from_numpy(draws[:, 1] < self.options.prompt_dropout)
        if self.tokenizers is not None:
            for name, ids in zip(("clip_ids", "t5_ids"), self.tokenizers.ids([""])):
                tensors[name] = flux.drop_prompts(tensors[name], torch.from_numpy(ids), drop)
        return tensors | {
            "weight": torch.from_numpy(batch.weights),
            "share": torch.from_numpy(share),
            "drop": drop,
            "place": torch.from_numpy(np.asarray(batch.places, np.int64)),
            "noise": torch.from_numpy(noise),
        }

    def collate_fixed(self, batch: Batch, decoded: Sequence[Arrays], shares: NDArray[np.float64]) -> Tensors:
        """As `collate`, with every prompt."""
        shape, count = self._latent_shape(decoded[0]), len(batch.rows)
        tensors = {name: stack(decoded, name) for name in decoded[0]}
        if not self.fly_latents:
            tensors |= self._pick(tensors, torch.zeros(count, dtype=torch.bool))
        noise = fixed_normal(batch.places, batch.rows, (2, *shape))
        if "mean" not in decoded[0]:
            tensors["draw"] = torch.from_numpy(noise[:, 1].copy())
        return tensors | {
            "weight": torch.from_numpy(batch.weights),
            "share": torch.from_numpy(shares),
            "drop": torch.zeros(count, dtype=torch.bool),
            "place": torch.from_numpy(np.asarray(batch.places, np.int64)),
            "noise": torch.from_numpy(noise[:, 0].copy()),
        }

    def _latent_shape(self, arrays: Arrays) -> tuple[int, int, int]:
        """Channels, height and width of a row's latent."""
        first = next(arrays[name] for name in ("image", "moments", "mean") if name in arrays)
        if self.fly_latents:
            return self.channels, first.shape[0] // self.factor, first.shape[1] // self.factor
        return self.channels, first.shape[-2], first.shape[-1]

    def _pick(self, tensors: Tensors, mirrored: Tensor) -> Tensors:
        """The variant of each row's latent, [b, c or 2c, h, w]."""
        name = "mean" if "mean" in tensors else "moments"
        variants = tensors[name]
        return {name: variants[torch.arange(len(variants)), mirrored.long()]}

    def example(self, samples: int, height: int, width: int) -> Tensors:
        """As `collate`."""
        return flux_shapes.example(self, samples, height, width)

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, phase: str, modules: Modules, batch: Tensors, step: int) -> Loss:
        """Flow matching, shown overall and by quarter of the distribution of times."""
        latent, noise = self._latent(modules, batch), batch["noise"]
        prompt, pooled = self._texts(modules, batch)
        t = flux.seen_time(flux.shift_time(flux.logit_normal(batch["share"]), self._mu(latent)).float(), self.dtype)
        predicted = flux.velocity(
            modules[TRANSFORMER],
            flux.interpolate(latent, noise, t),
            t,
            prompt,
            pooled,
            self._guidance(self.options.guidance),
            self.dtype,
        )
        terms = flux.matching_loss(predicted, flux.flow(latent, noise)) * batch["weight"]
        shown: dict[str, tuple[Tensor, Tensor | float]] = {"loss": (terms.detach().sum(), len(terms))}
        quarter = (batch["share"] * QUARTERS).long().clamp(max=QUARTERS - 1)
        for i in range(QUARTERS):
            inside = quarter == i
            shown[f"loss_by_t/quarter_{i + 1}"] = ((terms.detach() * inside).sum(), inside.sum())
        return Loss(terms.mean(), shown)

    def flops(self, height: int, width: int) -> float:
        """Of the transformer."""
        tokens = (height // (flux.PATCH * self.factor)) * (width // (flux.PATCH * self.factor))
        return step_flops(self.config, tokens, self.options.text_tokens, **self._trained())

    @abstractmethod
    def _trained(self) -> dict[str, Any]:
        """What of the transformer takes gradients, as `step_flops` wants it said."""

    def _mu(self, latent: Tensor) -> float:
        if self.options.shift is not None:
            return self.options.shift
        return self.shift.mu(latent.shape[2] * latent.shape[3] // flux.PATCH**2)

    def _guidance(self, wanted: float) -> float | None:
        return wanted if self.config["guidance_embeds"] else None

    @torch.no_grad()
    def _latent(self, modules: Modules, batch: Tensors) -> Tensor:
        """Scaled latents, fp32 [b, c, h, w]."""
        if "mean" in batch:
            drawn = batch["mean"].float()
        elif "moments" in batch:
            drawn = flux.draw_latent(batch["moments"], batch["draw"])
        else:
            vae: Any = modules["vae"]
            images = to_unit(batch["image"]).to(vae.dtype)
            drawn = flux.draw_latent(posterior(vae, images), batch["draw"])
        return flux.scale_latent(drawn, *self.scaling)

    def _texts(self, modules: Modules, batch: Tensors) -> tuple[Tensor, Tensor]:
        """States [b, n, width] and pooled vectors [b, width] of the prompts, those dropped included."""
        if self.tokenizers is None:
            empty_prompt, empty_pooled = self.known[""]
            return (
                flux.drop_prompts(batch["prompt"], empty_prompt, batch["drop"]),
                flux.drop_prompts(batch["pooled"], empty_pooled, batch["drop"]),
            )
        return self._encode(modules, batch["clip_ids"], batch["t5_ids"])

    def _encode(self, modules: Modules, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and T5 in self.trained_parts):
            prompt = encode_t5(modules[T5], t5_ids)
        with torch.set_grad_enabled(torch.is_grad_enabled() and CLIP in self.trained_parts):
            pooled = encode_clip(modules[CLIP], clip_ids)
        return prompt, pooled

    # -- results ------------------------------------------------------------------------------------------------------

    def sample(self, modules: Modules, batch: Tensors) -> Tensor:
        """Pictures of the fixed prompts, or the dataset's beside those made of their captions: [b, H, W or 2·W, 3].
        Those of prompts have nothing of the dataset, so that runs on different ones can be compared."""
        prompts, noise = self.options.sample_prompts, batch["noise"]
        if prompts:
            places = batch["place"].tolist()
            noise = torch.stack([self._first_noise(place, noise.shape[1:]) for place in places]).to(noise)
            texts = [prompts[place % len(prompts)] for place in places]
            prompt, pooled = self._embed(modules, texts, noise.device)
        else:
            prompt, pooled = self._texts(modules, batch | {"drop": torch.zeros_like(batch["drop"])})
        made = flux.sample_euler(
            modules[TRANSFORMER],
            noise,
            prompt,
            pooled,
            steps=self.options.sample_steps,
            shift=self.shift,
            guidance=self._guidance(self.options.sample_guidance),
            dtype=self.dtype,
        )
        pictures = self._decoded(modules, made)
        return pictures if prompts else torch.cat([self._decoded(modules, self._latent(modules, batch)), pictures], 2)

    def _first_noise(self, place: int, shape: Sequence[int]) -> Tensor:
        """What the picture at a place of the grid begins with, fp32, by seed and place."""
        return torch.from_numpy(generator(self.job.seed, 0, place).standard_normal(tuple(shape), dtype=np.float32))

    def _embed(self, modules: Modules, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        if self.tokenizers is None:
            prompts, pooled = zip(*(self.known[text] for text in texts))
            return torch.cat(prompts), torch.cat(pooled)
        clip_ids, t5_ids = (torch.from_numpy(ids).to(device) for ids in self.tokenizers.ids(texts))
        return self._encode(modules, clip_ids, t5_ids)

    def _decoded(self, modules: Modules, latent: Tensor) -> Tensor:
        vae: Any = modules["vae"]
        ready = flux.unscale_latent(latent, *self.scaling).to(vae.dtype)
        # One at a time: the decoder's activations are large.
        return torch.cat([to_bytes(vae.decode(one[None], return_dict=False)[0]) for one in ready])

    @abstractmethod
    def export(self, weights: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None: ...


def shift_of(folder: Path) -> flux.Shift:
    """How the scheduler of a pipeline shifts times."""
    found = flux_parts.config(folder, "scheduler", "model.pretrained")
    return flux.Shift(
        base=found.get("base_shift", 0.5),
        most=found.get("max_shift", 1.15),
        base_tokens=found.get("base_image_seq_len", 256),
        most_tokens=found.get("max_image_seq_len", 4096),
        dynamic=bool(found.get("use_dynamic_shifting", False)),
        factor=found.get("shift", 1.0),
    )


def _payload(row: Mapping[str, bytes | None], role: str) -> bytes:
    payload = row[role]
    if payload is None:
        raise UserError(f"has no {role}")
    return payload
