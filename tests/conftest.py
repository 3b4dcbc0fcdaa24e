"""How `make test` shares the tests out among its workers (pytest-xdist), and where `make soak` notes what it found."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import soak_report

pytest_plugins = ["pytester"]

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

TOGETHER = {"slurm": "cluster", "chaos": "chaos", "train": "ranks"}
"""Folders whose tests share what is costly to make, or run several processes each: one worker does a folder's."""
ORDER = ("cluster", "ranks", "chaos")
"""What takes longest comes first, one for each worker. Tests on the cluster wait for most of their time."""


def group(nodeid: str) -> str:
    """What one worker does as a whole, given a test's name such as tests/data/test_pack.py::test_x: a file stays whole,
    since its fixtures are costly."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file.split("/")[1], file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups first."""
    last = len(ORDER)
    items.sort(key=lambda item: ORDER.index(found) if (found := group(item.nodeid)) in ORDER else last)


# xdist's own groups, by a mark, have no effect with pytest 9.2: the mark comes after the names are taken.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Groups in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return ByGroup(config, log)


# ---- make soak


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-report", type=Path, help="page that notes how many cases of each soak test passed")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--soak-report")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SoakReport(page))


class SoakReport:
    """Counts the cases of the soak tests."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.found: defaultdict[str, soak_report.Outcome] = defaultdict(soak_report.Outcome)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "soak" not in report.keywords:
            return
        test = self.found[report.nodeid.partition("[")[0]]
        test.cases += report.when == "setup"
        test.failed += report.failed
        test.skipped += report.skipped
        test.seconds += report.duration

    def pytest_sessionfinish(self) -> None:
        if self.found:
            soak_report.write_cases(self.page, self.found)
