"""An exported Semantic Diffusion Model small enough for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from semiocity.data.columns import Dataset
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import DatasetFacts
from semiocity.train.tasks.sdm import SDMTask

MODEL = {
    "channels": 8,
    "mult": [1, 2],
    "res_blocks": 1,
    "attention_resolutions": [],
    "spade_hidden": 4,
    "learn_sigma": False,
    "timesteps": 20,
    "prediction": "v",
    "label_dropout": 0.1,
    "sample_steps": 2,
}
SIZE = 32


def export_model(dataset: Path, folder: Path, seed: int = 0, **model: object) -> Path:
    """Export a small SDM with random weights, none of them zero, as a training of `dataset` would."""
    data = Dataset.open(dataset)
    job = TrainJob.model_validate(
        {
            "dataset": str(dataset),
            "task": "sdm",
            "steps": 1,
            "global_batch": 1,
            "data": {"size": SIZE},
            "model": {**MODEL, **model},
        }
    )
    facts = DatasetFacts(
        data.name, data.digest, tuple(spec.name for spec in data.classes), tuple(data.palette), data.ignore_id
    )
    torch.manual_seed(seed)
    task = SDMTask(job, facts)
    module = task.phases()[0].modules["sdm"]
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    folder.mkdir(parents=True)
    task.export({"sdm": state}, folder, {"step": 1, "seed": seed})
    return folder
