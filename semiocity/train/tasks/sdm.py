"""Training a Semantic Diffusion Model: layout in, photograph out (Wang et al. 2022, arXiv 2207.00050)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from semiocity.data.decode import crop_of, decode_cropped, decode_ids, picture_size
from semiocity.data.geometry import mark_edges, resize_ids, resize_instances
from semiocity.data.loader import Arrays, Room, empty, stack, to_bytes, to_unit
from semiocity.data.order import Batch
from semiocity.errors import UserError
from semiocity.files import read_json, write_json
from semiocity.models import sdm_cost
from semiocity.models.diffusion import Diffusion, DiffusionConfig, sample_ddim
from semiocity.models.sdm import SDM, SDMConfig
from semiocity.train.noise import fixed_normal, generator, normal
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import DatasetFacts, Loss, Modules, Phase, Task, Tensors
from semiocity.train.tasks.sdm_options import SDMOptions

EXPORT_FORMAT = 1
NO_LABEL = 255
"""Id of pixels without a class inside a task: their one-hot vector is all zeros. Label maps have 8 bits and, with an
ignore id, at most 255 classes, so no class has this id."""
QUARTERS = 4


class SDMTask(Task):
    """One phase, one module: the U-Net."""

    def __init__(self, job: TrainJob, facts: DatasetFacts) -> None:
        super().__init__(job, facts)
        options = job.options
        assert isinstance(options, SDMOptions)
        if not facts.classes:
            raise UserError(f"dataset {facts.name} has no classes; task sdm needs label maps and their classes")
        self.options = options
        self.config = model_config(options, len(facts.classes), job.data.height_width[0])
        self.diffusion = Diffusion(diffusion_config(options))

    def phases(self) -> list[Phase]:
        return [Phase("sdm", {"sdm": SDM(self.config)}, self.job.optimizer, self.job.zero)]

    # -- reading ------------------------------------------------------------------------------------------------------

    def decode(self, row: Mapping[str, bytes | None], size: tuple[int, int], room: Room) -> Arrays:
        """`image` [H, W, 3] uint8, `label` [H, W] uint8 with NO_LABEL, and `instance` [H, W] int32 with edges."""
        height, width = size
        data = _payload(row, "image")
        full = picture_size(data)
        geometry = crop_of(full, (width, height))
        arrays: Arrays = {"image": decode_cropped(data, (width, height), room("image", (height, width, 3), np.uint8))}
        label = decode_label(_payload(row, "label"), self.facts)
        if label.shape != full[::-1]:
            raise UserError(f"the label map has shape {label.shape}, the image {full[::-1]}")
        arrays["label"] = resize_ids(label, geometry, NO_LABEL) if geometry else label
        if self.options.edges:
            instance = decode_ids(_payload(row, "instance")).astype(np.uint16)
            arrays["instance"] = (resize_instances(instance, label, geometry) if geometry else instance).astype(
                np.int32
            )
        return arrays

    def collate(self, batch: Batch, decoded: Sequence[Arrays]) -> Tensors:
        """The arrays stacked, with `weight` [b], `t` [b] int64, `drop` [b] bool and `noise` [b, 3, H, W]."""
        height, width = decoded[0]["image"].shape[:2]
        draws = np.empty((len(batch.rows), 3))
        noise = empty(decoded, (len(batch.rows), 3, height, width), np.float32)
        for i, row in enumerate(batch.rows):
            random = generator(self.job.seed, batch.step, int(row))
            draws[i] = random.random(3)
            random.standard_normal(out=noise[i], dtype=np.float32)
        tensors = {name: stack(decoded, name) for name in decoded[0]}
        share = draws[:, 0]
        if self.options.stratified_t:
            share = (batch.places + share) / self.job.global_batch
        if self.job.data.flip:
            mirrored = torch.from_numpy(draws[:, 2] < 0.5)
            for name, tensor in tensors.items():
                turn = mirrored.view(-1, *[1] * (tensor.ndim - 1))
                tensors[name] = torch.where(turn, tensor.flip(2), tensor)
        tensors["weight"] = torch.from_numpy(batch.weights)
        tensors["t"] = torch.from_numpy((share * self.options.timesteps).astype(np.int64))
        tensors["drop"] = torch.from_numpy(draws[:, 1] < self.options.label_dropout)
        tensors["noise"] = torch.from_numpy(noise)
        return tensors

    def collate_fixed(self, batch: Batch, decoded: Sequence[Arrays], shares: NDArray[np.float64]) -> Tensors:
        """As `collate`, with layouts for all."""
        shape = (3, *decoded[0]["image"].shape[:2])
        return {
            **{name: stack(decoded, name) for name in decoded[0]},
            "weight": torch.from_numpy(batch.weights),
            "t": torch.from_numpy((shares * self.options.timesteps).astype(np.int64)),
            "drop": torch.zeros(len(shares), dtype=torch.bool),
            "noise": torch.from_numpy(fixed_normal(batch.places, batch.rows, shape)),
        }

    def flops(self, height: int, width: int) -> float:
        return sdm_cost.training_flops(self.config, height, width)

    def example(self, samples: int, height: int, width: int) -> Tensors:
        """As `collate`."""
        tensors = {
            "image": torch.empty(samples, height, width, 3, dtype=torch.uint8),
            "label": torch.empty(samples, height, width, dtype=torch.uint8),
            "weight": torch.empty(samples, dtype=torch.float32),
            "t": torch.empty(samples, dtype=torch.int64),
            "drop": torch.empty(samples, dtype=torch.bool),
            "noise": torch.empty(samples, 3, height, width),
        }
        if self.options.edges:
            tensors["instance"] = torch.empty(samples, height, width, dtype=torch.int32)
        return tensors

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, phase: str, modules: Modules, batch: Tensors, step: int) -> Loss:
        """L_simple, plus the variational bound where the variance is learned; shown overall and by quarter of t."""
        images, t, noise = to_unit(batch["image"]), batch["t"], batch["noise"]
        layout = self._layout(batch) * ~batch["drop"].view(-1, 1, 1, 1)
        output = modules["sdm"](self.diffusion.q_sample(images, noise, t), t, layout)
        terms = {name: term * batch["weight"] for name, term in self.diffusion.loss(output, images, noise, t).items()}

        size = len(t)
        # Without a variational bound, `simple` is `loss`.
        names = terms if "vlb" in terms else ("loss",)
        shown: dict[str, tuple[Tensor, Tensor | float]] = {name: (terms[name].detach().sum(), size) for name in names}
        quarter = t * QUARTERS // self.options.timesteps
        for i in range(QUARTERS):
            inside = quarter == i
            shown[f"loss_by_t/quarter_{i + 1}"] = ((terms["loss"].detach() * inside).sum(), inside.sum())
        return Loss(terms["loss"].mean(), shown)

    def _layout(self, batch: Tensors) -> Tensor:
        instance = batch["instance"] if self.options.edges else None
        return one_hot(batch["label"], len(self.facts.classes), instance)

    # -- results ------------------------------------------------------------------------------------------------------

    @property
    def grid_title(self) -> str:
        return "layout, real, sample"

    def sample(self, modules: Modules, batch: Tensors) -> Tensor:
        """Layout in the dataset's colours, real image and sample side by side: [b, H, 3·W, 3] uint8."""
        # The noise of step 0 in every grid: grids then differ by the weights alone.
        made = sample_ddim(
            self.diffusion,
            modules["sdm"],
            batch["noise"],
            self._layout(batch),
            steps=self.options.sample_steps,
            guidance=self.options.sample_guidance,
        )
        palette = torch.zeros(256, 3, dtype=torch.uint8, device=made.device)
        palette[: len(self.facts.palette)] = torch.tensor(self.facts.palette, dtype=torch.uint8, device=made.device)
        return torch.cat([palette[batch["label"].long()], batch["image"], to_bytes(made)], dim=2)

    def export(self, weights: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None:
        """model.safetensors and config.json, which `load_export` reads."""
        dtype = torch.bfloat16 if self.job.export_dtype == "bf16" else torch.float32
        state = {name: tensor.to(dtype).contiguous() for name, tensor in weights["sdm"].items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(
            folder / "config.json",
            {
                "format": EXPORT_FORMAT,
                "family": "sdm",
                "model": asdict(self.config),
                "diffusion": asdict(diffusion_config(self.options)),
                "size": list(self.job.data.height_width),
                "edges": self.options.edges,
                "label_dropout": self.options.label_dropout,
                "classes": list(self.facts.classes),
                "palette": [list(colour) for colour in self.facts.palette],
                "ignore_id": self.facts.ignore_id,
                "fields": self.job.fields_by_role(),
                **facts,
            },
        )


def load_export(folder: Path, device: torch.device | str = "cpu") -> tuple[SDM, dict[str, Any]]:
    """The model of an export folder in fp32 and eval mode, and its config.json.

    Raises UserError when there is no export, or one of a newer format.
    """
    try:
        meta = read_json(folder / "config.json")
    except FileNotFoundError:
        raise UserError(f"{folder}: no exported model here; it is written when a training ends") from None
    if meta["format"] != EXPORT_FORMAT or meta["family"] != "sdm":
        raise UserError(
            f"{folder}/config.json: {meta['family']}, format {meta['format']}; this reads sdm, format {EXPORT_FORMAT}"
        )
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in meta["model"].items()
    }
    model = SDM(SDMConfig(**config))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.to(device).eval().requires_grad_(False), meta


def model_config(options: SDMOptions, classes: int, height: int) -> SDMConfig:
    """The model that the options describe, for a dataset's number of classes."""
    return SDMConfig(
        label_channels=classes + options.edges,
        image_size=height,
        channels=options.channels,
        mult=options.mult,
        res_blocks=options.res_blocks,
        attention_resolutions=options.attention_resolutions,
        head_channels=options.head_channels,
        spade_hidden=options.spade_hidden,
        learn_sigma=options.learn_sigma,
        dropout=options.dropout,
        resblock_updown=options.resblock_updown,
        patch=options.patch,
        checkpoint=options.checkpoint,
    )


def diffusion_config(options: SDMOptions) -> DiffusionConfig:
    """The diffusion process that the options describe."""
    return DiffusionConfig(
        timesteps=options.timesteps,
        beta_start=options.beta_start,
        beta_end=options.beta_end,
        prediction=options.prediction,
        min_snr_gamma=options.min_snr_gamma,
        vlb_weight=options.vlb_weight,
    )


def one_hot(label: Tensor, classes: int, instance: Tensor | None = None) -> Tensor:
    """Layout [B, L, H, W] in fp32 from ids [B, H, W]; ids outside 0 … classes-1 give all zeros.

    With `instance` ids [B, H, W] there is one channel more, `edges`.
    """
    ids = torch.arange(classes, dtype=label.dtype, device=label.device)
    layout = (label[:, None] == ids[None, :, None, None]).float()
    return layout if instance is None else torch.cat([layout, edges(instance)], dim=1)


def edges(instance: Tensor) -> Tensor:
    """[B, 1, H, W] in fp32: 1 on both sides of every border between instances [B, H, W] (`geometry.mark_edges`)."""
    edge = torch.zeros_like(instance, dtype=torch.bool)
    mark_edges(instance, edge)
    return edge[:, None].float()


def decode_label(payload: bytes, facts: DatasetFacts) -> NDArray[np.uint8]:
    """A label map [H, W]; the dataset's ignore id becomes NO_LABEL. UserError for an id that is no class."""
    ids = decode_ids(payload)
    known = len(facts.classes)
    ignored = ids == facts.ignore_id if facts.ignore_id is not None else np.zeros(ids.shape, bool)
    wrong = ids[(ids >= known) & ~ignored]
    if wrong.size:
        raise UserError(
            f"label {int(wrong[0])} is no class: {facts.name} has classes 0 to {known - 1}, ignore id {facts.ignore_id}"
        )
    return np.where(ignored, NO_LABEL, ids).astype(np.uint8)


def sampling_noise(seed: int, rows: Sequence[int], index: int, height: int, width: int) -> Tensor:
    """x_T of image number `index` of each row's layout, keyed by all of them: [len(rows), 3, height, width]."""
    return torch.from_numpy(normal(seed, index, rows, (3, height, width), "sample"))


def _payload(row: Mapping[str, bytes | None], role: str) -> bytes:
    payload = row[role]
    if payload is None:
        raise UserError(f"has no {role}")
    return payload
