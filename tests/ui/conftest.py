"""A small packed town with captions that attack, masks, boxes and failures; the gallery that serves it; a browser.

Where Chromium is missing the browser's tests skip, unless SEMIOCITY_REQUIRE names `browser`: there it is a failure.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gallery_town import make_town

from semiocity.ui.browse.library import Library
from semiocity.ui.browse.server import Gallery

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,900",
)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_town(tmp_path_factory.mktemp("data") / "town")


@pytest.fixture
def own_town(town: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(town, tmp_path / "town"))


@pytest.fixture(scope="session")
def library(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The town with its index built."""
    library = Library(town, cache=tmp_path_factory.mktemp("index"))
    library.wait()
    return library


@pytest.fixture(scope="session")
def gallery(library: Library) -> Iterator[Gallery]:
    """The town, served."""
    server = Gallery(library)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser with an empty profile that talks to nobody but us."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    absent = [name for name, found in programs.items() if found is None]
    if absent:
        _refuse(f"browser: {', '.join(absent)} missing; apt-get install chromium chromium-driver fonts-dejavu-core")
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        _refuse("browser: selenium is not installed; pip install 'semiocity[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs["chromium"])
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs["chromedriver"])))
    yield driver
    driver.quit()


def _refuse(reason: str) -> None:
    if "browser" in os.environ.get("SEMIOCITY_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
