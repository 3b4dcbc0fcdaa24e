"""A small packed city with a second column, shared by the tests that only read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from make_images import add_column, city_recipe, packed

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import merge
from semiocity.stages.base import make_stage, revision
from semiocity.stages.runner import run_shards


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows in 4 shards; the columns base and word, the second with a tombstone. Read only."""
    folder = tmp_path_factory.mktemp("data") / "town"
    _, dataset = packed(city_recipe(), folder)
    add_column(folder, failing=(dataset.reader("base", 1).keys[2],))
    return folder


@pytest.fixture
def own_town(town: Path, tmp_path: Path) -> Path:
    """A copy of `town` that a test may spoil."""
    return Path(shutil.copytree(town, tmp_path / "town"))


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows in 4 shards with the columns base, word (a tombstone in it), caption and mask. Read only."""
    folder = tmp_path_factory.mktemp("data") / "town"
    _, dataset = packed(city_recipe(), folder)
    add_column(folder, failing=(dataset.reader("base", 1).keys[2],))
    for name, args in (
        ("caption", {"captioner": "labels"}),
        ("segment", {"segmenter": "superpixels", "superpixels": 40, "masks_max": 8}),
    ):
        stage = make_stage(name, args)
        made = revision(stage, {"base": dataset.column("base").revision})
        assert run_shards(stage, folder, stage.column, made, range(dataset.shards), Owner.here())
        merge(folder, stage.column, made)
    return folder


@pytest.fixture
def own_city(city: Path, tmp_path: Path) -> Path:
    """A copy of `city` that a test may spoil."""
    return Path(shutil.copytree(city, tmp_path / "town"))


@pytest.fixture
def full(city: Path) -> Dataset:
    return Dataset.open(city)
