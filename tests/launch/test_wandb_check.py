"""A training that wants Weights & Biases is refused before it is queued when it would not find what it needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Cluster, check
from semiocity.errors import UserError
from semiocity.launch import wandb_check

OFFLINE, ONLINE = {"mode": "offline"}, {"mode": "online"}
KEY = {wandb_check.KEY: "k" * 40}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_who_wants_none_needs_none() -> None:
    wandb_check.check(None, None, Cluster(), {})


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb: the package is not there in this Python; install it"):
        wandb_check.check(OFFLINE, None, Cluster(), {})


@pytest.mark.parametrize("status", [0, 1])
def test_with_an_image_it_is_looked_for_there(status: int, tmp_path: Path) -> None:
    apptainer = tmp_path / "apptainer"
    apptainer.write_text(f'#!/bin/bash\necho "$*" >{tmp_path}/call\nexit {status}\n')
    apptainer.chmod(0o755)
    cluster = Cluster.model_validate({"container": {"apptainer": str(apptainer)}})
    image = tmp_path / "x.sif"
    if status:
        with pytest.raises(UserError, match=r"not there in .*x\.sif"):
            wandb_check.check(OFFLINE, image, cluster, {})
    else:
        wandb_check.check(OFFLINE, image, cluster, {})
    assert f"{image} python3 -c import importlib" in (tmp_path / "call").read_text()


@pytest.mark.usefixtures("installed")
def test_online_needs_the_key_in_the_environment() -> None:
    wandb_check.check(OFFLINE, None, Cluster(), {})
    wandb_check.check(ONLINE, None, Cluster(), KEY)
    with pytest.raises(UserError, match="WANDB_API_KEY is not in the environment"):
        wandb_check.check(ONLINE, None, Cluster(), {})


def test_a_key_in_the_site_file_is_refused() -> None:
    settings: dict[str, Any] = {"container": {"env": {wandb_check.KEY: "abc"}}}
    with pytest.raises(UserError, match=r"cluster\.toml: container\.env: WANDB_API_KEY: a secret must not") as error:
        check(settings, Cluster, "cluster.toml")
    assert "abc" not in str(error.value)
