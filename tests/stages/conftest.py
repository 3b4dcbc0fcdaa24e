"""A small dataset and tiny models, shared by the tests of stages that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_data import STREET, street_rows, write_base


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 rows in 3 shards with image, label and instance maps of street scenes. Copy it before adding columns."""
    return write_base(tmp_path_factory.mktemp("data") / "street", street_rows(11), shard_rows=4, classes=STREET)


@pytest.fixture
def broken_street(tmp_path: Path) -> Path:
    """8 rows in 2 shards; row 2 has no image that can be decoded, row 5 no label map that can."""
    rows = street_rows(8)
    keys = sorted(rows)
    rows[keys[2]]["image"] = ("jpg", b"<html>404 Not Found</html>")
    rows[keys[5]]["label"] = ("label.png", rows[keys[5]]["label"][1][:-40])
    return write_base(tmp_path / "broken", rows, shard_rows=4, classes=STREET)
