"""Two ranks, small packed datasets and a tiny Flux for the tests of training."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from flux_data import cache, captioned_city
from tiny_flux import save_flux
from train_ranks import Ranks

from semiocity.data.lease import Owner
from semiocity.data.manifest import merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two gloo ranks that stay for the whole session."""
    made = Ranks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def lone_rank() -> Iterator[Ranks]:
    """One rank by itself."""
    made = Ranks(1)
    yield made
    made.close()


@pytest.fixture
def chance() -> random.Random:
    """Random numbers for a test; their seed is in its output."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset: 22 rows of 32×32 for training in three shards, with label and instance maps."""
    return packed_city(tmp_path_factory.mktemp("data") / "city", 22)


@pytest.fixture(scope="session")
def other_city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another number of rows."""
    return packed_city(tmp_path_factory.mktemp("data") / "city", 20)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Flux pipeline of random weights."""
    return save_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="session")
def town(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned rows of 32×32 for training, with `latent` (mirrored, too) and `text` of `model`."""
    return cache(captioned_city(tmp_path_factory.mktemp("data") / "city", 8), model, flip=True)


def packed_city(folder: Path, rows: int) -> Path:
    source = {"kind": "city", "train": rows, "val": 5, "size": [32, 32]}
    recipe = Recipe.model_validate({"name": "city", "source": source, "shard_rows": 9})
    plan = make_plan(recipe, folder)
    assert pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: False, report=lambda facts: None)
    merge(folder, "base", plan.revision)
    return folder
