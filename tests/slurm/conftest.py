"""The cluster and the image that tests share.

Where a component is missing the tests skip, unless SEMIOCITY_REQUIRE names it: CI sets `slurm,apptainer`, and there a
missing component is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import real_image
from lab import Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs the image may have to build it, which outlasts the usual limit on a busy machine."""
    for item in items:
        if item.get_closest_marker("apptainer") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def need(component: str, programs: tuple[str, ...], remedy: str) -> None:
    """Skip, or fail where the component is required, when one of `programs` is missing."""
    search = os.environ.get("PATH", "") + ":/usr/sbin"
    missing = [program for program in programs if shutil.which(program, path=search) is None]
    if missing:
        refuse(component, f"{component}: {', '.join(missing)} missing; {remedy}")


def refuse(component: str, reason: str) -> None:
    if component in os.environ.get("SEMIOCITY_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A booted SLURM cluster, ended with the session."""
    need("slurm", ("slurmctld", "slurmd", "sbatch", "munged"), "apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-lab-", dir="/tmp"))
    cluster = Cluster.start(folder)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image() -> Path:
    """The real image, from the cache or built now."""
    return _image("gpu")


@pytest.fixture(scope="session")
def cpu_image() -> Path:
    """The small image without torch, from the cache or built now."""
    return _image("cpu")


def _image(variant: str) -> Path:
    remedy = "see .ci/run for what to install"
    need("apptainer", ("apptainer", "mmdebstrap", "newuidmap", "fuse-overlayfs", "squashfuse", "mksquashfs"), remedy)
    try:
        real_image.builder()
    except KeyError:
        refuse("apptainer", f"apptainer: root cannot build; useradd --create-home {real_image.BUILDER}")
    return real_image.cached_image(variant)
