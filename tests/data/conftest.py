"""A small packed city with a second column, shared by the tests that only read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from make_images import add_column, city_recipe, packed


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
