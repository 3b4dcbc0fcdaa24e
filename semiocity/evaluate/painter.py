"""Exported models as painters: from label maps and image seeds to pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semiocity.data.geometry import plan_geometry, resize_ids, resize_instances
from semiocity.data.loader import to_bytes
from semiocity.data.recipe import ImagePolicy
from semiocity.errors import UserError
from semiocity.evaluate import noise
from semiocity.evaluate.images import Pixels, Size, decode_ids
from semiocity.evaluate.options import GenerateJob
from semiocity.models.diffusion import Diffusion, DiffusionConfig, sample_ancestral, sample_ddim
from semiocity.train.tasks.sdm import NO_LABEL, load_export, one_hot

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Painter:
    """An exported Semantic Diffusion Model with its sampler."""

    def __init__(self, folder: Path, job: GenerateJob, device: torch.device) -> None:
        """UserError when there is no export in `folder`, or the settings do not suit the model."""
        self.model, self.meta = load_export(folder, device)
        self.model.to(DTYPES[job.dtype])
        self.diffusion = Diffusion(DiffusionConfig(**self.meta["diffusion"]))
        self.job, self.device = job, device
        height, width = self.meta["size"]
        self.size: Size = (height, width)
        self.digest = export_digest(folder)
        if job.steps > len(self.diffusion):
            raise UserError(f"steps: {job.steps}, but the model was trained with {len(self.diffusion)} timesteps")
        if job.guidance != 1 and not self.meta["label_dropout"]:
            raise UserError(
                f"guidance: {job.guidance}, but the model never saw the null label (it was trained with "
                "label_dropout = 0); set guidance = 1"
            )

    @property
    def fields(self) -> dict[str, str]:
        """What is read of a row, by role: label, and instance where the model has edges."""
        roles = ("label", "instance") if self.meta["edges"] else ("label",)
        return {role: self.meta["fields"][role] for role in roles}

    def check_classes(self, names: Sequence[str], where: Path) -> None:
        """UserError unless the dataset's classes are those that the model was trained with, in the same order."""
        if list(names) != self.meta["classes"]:
            known = ", ".join(self.meta["classes"])
            raise UserError(f"{where}: its classes are {', '.join(names)}; the model was trained with {known}")

    def layout(self, row: Mapping[str, bytes | None], ignore_id: int | None) -> Tensor:
        """The layout of a row, brought to the model's size: [1, L, H, W] in fp32. ValueError when it is damaged."""
        maps = {role: row[field] for role, field in self.fields.items()}
        absent = [self.fields[role] for role, payload in maps.items() if payload is None]
        if absent:
            raise ValueError(f"has no {absent[0]}")
        label = decode_ids(maps["label"] or b"", len(self.meta["classes"]), ignore_id)
        label = np.where(label == (NO_LABEL if ignore_id is None else ignore_id), NO_LABEL, label).astype(np.uint8)
        policy = ImagePolicy(resize="crop", size=(self.size[1], self.size[0]))
        geometry = plan_geometry(policy, label.shape[1], label.shape[0])
        instance: Tensor | None = None
        if payload := maps.get("instance"):
            ids = decode_ids(payload, 2**16).astype(np.uint16)
            ids = resize_instances(ids, label, geometry) if geometry else ids
            instance = torch.from_numpy(ids.astype(np.int32))[None]
        label = resize_ids(label, geometry, NO_LABEL) if geometry else label
        return one_hot(torch.from_numpy(label)[None], len(self.meta["classes"]), instance)

    def paint(self, layouts: Tensor, seeds: Sequence[str]) -> Pixels:
        """Pictures [B, H, W, 3] for layouts [B, L, H, W], each from the noise of its seed."""
        shape = (3, *self.size)

        def draw(stream: int) -> Tensor:
            return torch.from_numpy(np.stack([noise.normal(seed, shape, stream) for seed in seeds])).to(self.device)

        arguments: dict[str, Any] = {"steps": self.job.steps, "guidance": self.job.guidance, "step_noise": draw}
        start, layouts = draw(noise.START), layouts.to(self.device)
        with deterministic(), torch.no_grad():
            if self.job.sampler == "ddim":
                made = sample_ddim(self.diffusion, self.model, start, layouts, eta=self.job.eta, **arguments)
            else:
                made = sample_ancestral(self.diffusion, self.model, start, layouts, **arguments)
        if not torch.isfinite(made).all():
            raise UserError(
                f"the model made values that are not finite in {self.job.dtype}; "
                'its training diverged, or dtype = "float32" is needed'
            )
        return to_bytes(made).cpu().numpy()


def choose_device(name: str) -> torch.device:
    """The device of a job: `auto` is the GPU if there is one. UserError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is none that torch knows; cpu, cuda or auto would do") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f'device: {name!r}, but torch sees no GPU here; device = "auto" takes what is there')
    return device


def export_digest(folder: Path) -> str:
    """sha256 over configuration and weights of an export."""
    total = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@contextmanager
def deterministic() -> Iterator[None]:
    """The same bits each time on the same GPU: no search for the fastest algorithm, none that adds in random order."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
