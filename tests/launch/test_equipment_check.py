"""A training whose settings need what is not where it would run is refused before it is queued."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import equipment_check


def job(**changes: Any) -> dict[str, Any]:
    plain = {"compile": "none", "model": {}, "optimizer": {"kind": "adamw"}, "resources": {"gpus_per_node": 8}}
    return {**plain, **changes}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """With torch's modules, but neither Triton nor flash-attn, and no compiler, as ours is."""
    return tmp_path / "x.sif"


@pytest.fixture
def site(tmp_path: Path) -> Cluster:
    """Its apptainer runs this Python in an environment without anything."""
    apptainer = tmp_path / "apptainer"
    apptainer.write_text(
        f'#!/bin/bash\necho call >>{tmp_path}/calls\nwhile [ "$1" != -c ]; do shift; done\n'
        f'PATH={tmp_path} exec {sys.executable} -I -S "$@"\n'
    )
    apptainer.chmod(0o755)
    return Cluster.model_validate({"executor": "slurm", "container": {"apptainer": str(apptainer)}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"compile": "blocks"},
            r"blocks\" needs the Python module triton and a C\+\+ compiler .* in .*x\.sif; .*set compile = \"none\"",
        ),
        ({"compile": "blocks", "resources": {"gpus_per_node": 0}}, r"blocks\" needs a C\+\+ compiler"),
        ({"model": {"attention": "flash"}}, 'attention = "flash" needs the Python module flash_attn, .*"native"'),
        ({"optimizer": {"kind": "adamw_8bit"}}, 'adamw_8bit" needs the Python module bitsandbytes'),
        ({"model": {"attention": "flash"}, "resources": {"gpus_per_node": 0}}, '"flash" needs a GPU'),
    ],
)
def test_what_the_image_lacks_is_refused(changes: dict[str, Any], said: str, image: Path, site: Cluster) -> None:
    with pytest.raises(UserError, match=said):
        equipment_check.check(job(**changes), image, site)


def test_an_image_that_has_it_is_taken(image: Path, site: Cluster, tmp_path: Path) -> None:
    (tmp_path / "g++").touch(0o755)
    equipment_check.check(job(compile="blocks", resources={"gpus_per_node": 0}), image, site)
    assert (tmp_path / "calls").read_text() == "call\n"


def test_who_wants_nothing_is_not_asked(image: Path, site: Cluster, tmp_path: Path) -> None:
    equipment_check.check(job(model={"attention": "_native_flash"}), image, site)
    assert not (tmp_path / "calls").exists()


def test_an_image_that_does_not_start_is_no_answer(image: Path) -> None:
    broken = Cluster.model_validate({"container": {"apptainer": "false"}})
    with pytest.raises(UserError, match=r"x\.sif: its Python does not start"):
        equipment_check.check(job(compile="blocks"), image, broken)


def test_without_an_image_this_python_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiled = job(compile="blocks", resources={"gpus_per_node": 0})
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler .*here"):
        equipment_check.check(compiled, None, Cluster())
    # What compute nodes have besides, the login node cannot know.
    equipment_check.check(compiled, None, Cluster.model_validate({"executor": "slurm"}))
