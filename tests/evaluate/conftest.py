"""A small packed city, a small exported model, and a run folder that holds it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_model import SIZE, export_model

from semiocity.data.lease import Owner
from semiocity.data.manifest import merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(min(torch.get_num_threads(), 2))


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 train and 7 held-out streets of 32×32 pixels, in several shards. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluate") / "city"
    recipe = Recipe.model_validate(
        {
            "name": "city",
            "source": {"kind": "city", "train": 24, "val": 7, "size": [SIZE, SIZE]},
            "image": {"format": "png"},
            "shard_rows": 8,
        }
    )
    plan = make_plan(recipe, folder)
    assert pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: False, report=lambda facts: None)
    merge(folder, "base", plan.revision)
    return folder


@pytest.fixture
def city(packed: Path, tmp_path: Path) -> Path:
    """A copy of `packed` that a test may change."""
    return Path(shutil.copytree(packed, tmp_path / "data" / "city"))


@pytest.fixture(scope="session")
def exported(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder of a model with random weights."""
    return export_model(packed, tmp_path_factory.mktemp("export") / "export")


@pytest.fixture
def run_folder(exported: Path, tmp_path: Path) -> Path:
    """A run with an exported model and nothing else."""
    shutil.copytree(exported, tmp_path / "runs" / "demo" / "export")
    return tmp_path / "runs" / "demo"
