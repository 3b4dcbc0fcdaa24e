"""How `make test` shares the tests out among its workers (pytest-xdist, `--dist loadgroup`)."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SEVERAL_PROCESSES = ("train", "slurm", "chaos")
"""Folders whose tests run several processes each: one worker does them all, so that they do not starve each other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every file stays whole, since its fixtures are costly; the longest group comes first."""
    for item in items:
        heavy = item.path.relative_to(ROOT).parts[0] in SEVERAL_PROCESSES
        item.add_marker(pytest.mark.xdist_group("processes" if heavy else str(item.path)))
    items.sort(key=lambda item: item.path.relative_to(ROOT).parts[0] not in SEVERAL_PROCESSES)
