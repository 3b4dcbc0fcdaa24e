"""The judge: a small segmenter trained on the dataset's own train split.

It measures whether a generated image shows what its layout asked for, and its features serve Fréchet distances where no
Inception weights are at hand. Trained once for each (dataset, settings): the weights are kept beside the dataset.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from semiocity.data.loader import to_unit
from semiocity.errors import UserError
from semiocity.evaluate.options import SegmenterSettings
from semiocity.evaluate.pairs import Pairs
from semiocity.files import digest, read_json, write_atomic, write_json
from semiocity.models.segmenter import Segmenter, SegmenterConfig

VERSION = 2
"""Raised when training changes, so that weights of older code are not taken for those of this one."""
IGNORED = -100
"""Label of pixels without a class."""


def judge(
    pairs: Pairs, settings: SegmenterSettings, folders: Sequence[Path], device: torch.device
) -> tuple[Segmenter, str]:
    """The segmenter for these train pairs, and its name: from the first of `folders` that has it, else trained.

    `folders` are tried in order; those that cannot be written to are passed over. UserError if the size does not fit.
    """
    config = SegmenterConfig(len(pairs.classes), settings.width, settings.levels)
    stride = 2 ** (settings.levels - 1)
    if pairs.size[0] % stride or pairs.size[1] % stride:
        raise UserError(
            f"segmenter: images of {pairs.size[0]}×{pairs.size[1]} pixels, but {settings.levels} levels need multiples "
            f"of {stride}; set segmenter.size to such a height and width, or fewer segmenter.levels"
        )
    identity = {
        "version": VERSION,
        "settings": settings.model_dump(mode="json"),
        "config": asdict(config),
        "size": list(pairs.size),
        "data": pairs.digest,
        # Another device may round differently, and scores are to be repeatable.
        "device": device.type,
    }
    name = f"segmenter-{digest(identity)}"
    for folder in folders:
        found = _load(folder / name, config, identity)
        if found is not None:
            return found.to(device).to(memory_format=torch.channels_last), name
    trained = train(pairs, config, settings, device)
    for folder in folders:
        if _keep(trained, folder / name, identity):
            break
    return trained, name


def train(pairs: Pairs, config: SegmenterConfig, settings: SegmenterSettings, device: torch.device) -> Segmenter:
    """Train from scratch; the same weights for the same arguments on the same device and number of threads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        # Convolutions on CPUs take a third less time with channels last, and half of what they take in bf16.
        model = Segmenter(config).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    weights = _class_weights(pairs).to(device)
    random = np.random.Generator(np.random.Philox(settings.seed))
    order: list[int] = []
    for step in range(1, settings.steps + 1):
        while len(order) < settings.batch:
            order += random.permutation(len(pairs)).tolist()
        rows, order = order[: settings.batch], order[settings.batch :]
        images, labels = batch(pairs, rows, device)
        mirrored = torch.from_numpy(random.random(len(rows)) < 0.5).to(device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        labels = torch.where(mirrored[:, None, None], labels.flip(2), labels)
        loss = weighted_loss(model(images), labels, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step * 4 % settings.steps < 4:
            print(f"segmenter: step {step}/{settings.steps}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy of logits [B, C, H, W] and labels [B, H, W], weighted by class [C]; `IGNORED` pixels do not count.

    As torch's cross_entropy, but the same bits each time on a GPU, and 0 instead of NaN where nothing is labelled.
    """
    ids = torch.arange(logits.shape[1], device=logits.device)
    share = (labels[:, None] == ids[:, None, None]) * weights[:, None, None]
    return -(F.log_softmax(logits, dim=1) * share).sum() / share.sum().clamp(min=1e-9)


def batch(pairs: Pairs, rows: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] in [-1, 1] and labels [B, H, W] int64, where what is unlabelled is `IGNORED`."""
    images = to_unit(torch.from_numpy(pairs.images(rows)))
    labels = torch.from_numpy(pairs.labels(rows)).long()
    if pairs.ignore_id is not None:
        labels[labels == pairs.ignore_id] = IGNORED
    return images.to(device, memory_format=torch.channels_last), labels.to(device)


@torch.no_grad()
def predict(model: Segmenter, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.int64]:
    """Class ids [B, H, W] of images [B, H, W, 3], uint8."""
    return model(to_unit(torch.from_numpy(images)).to(device)).argmax(1).cpu().numpy()


def _rate(step: int, steps: int) -> float:
    warmup = max(steps // 20, 1)
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _class_weights(pairs: Pairs, most: int = 200) -> Tensor:
    """Weights of the classes, about 1/√share: poles and people are a few pixels, and mIoU counts them like the sky."""
    counts = np.ones(len(pairs.classes))
    for row in np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(int)):
        counts += np.bincount(pairs.label(int(row)).ravel(), minlength=256)[: len(pairs.classes)]
    share = counts / counts.sum()
    weights = 1 / np.sqrt(np.maximum(share, 1e-3))
    return torch.from_numpy(weights / (weights * share).sum()).float()


def _load(folder: Path, config: SegmenterConfig, identity: dict[str, Any]) -> Segmenter | None:
    from safetensors.torch import load_file

    try:
        if read_json(folder / "settings.json") != identity:
            return None
    except FileNotFoundError:
        return None
    model = Segmenter(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def _keep(model: Segmenter, folder: Path, identity: dict[str, Any]) -> bool:
    """Write weights, then settings.json as the mark that they are whole. False when the folder cannot be written to."""
    from safetensors.torch import save

    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        return False
    write_atomic(folder / "model.safetensors", save({k: v.cpu().contiguous() for k, v in model.state_dict().items()}))
    write_json(folder / "settings.json", identity)
    return True
