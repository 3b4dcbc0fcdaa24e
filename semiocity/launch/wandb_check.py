"""What is refused before a training that wants Weights & Biases is queued: no package, no key.

A key in the site file is refused by semiocity.config, for all jobs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import container

KEY = "WANDB_API_KEY"


def check(
    wanted: Mapping[str, Any] | None,
    image: Path | None,
    cluster: Cluster,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """UserError unless a training with these [wandb] settings finds what it needs. None: it wants none."""
    if wanted is None:
        return
    if wanted["mode"] == "online" and not environment.get(KEY):
        raise UserError(
            f'wandb.mode is "online", but {KEY} is not in the environment; export it in this shell, or leave the mode '
            'at "offline" and run `wandb sync` later'
        )
    if not _has_package(image, cluster):
        where = f"in {image}" if image else "in this Python"
        raise UserError(
            f"wandb: the package is not there {where}; install it (`pip install 'semiocity[wandb]'`, or add it to the "
            "image), or drop the table [wandb]"
        )


def _has_package(image: Path | None, cluster: Cluster) -> bool:
    if image is None:
        return importlib.util.find_spec("wandb") is not None
    if cluster.container.runtime != "apptainer":
        return True  # Enroot's images can be looked into on a compute node only
    look = "import importlib.util as u, sys; sys.exit(u.find_spec('wandb') is None)"
    argv = container.exec_argv(
        image, binds=[], env={}, nv=False, pythonpath=None, pwd=Path("/"), apptainer=cluster.container.apptainer
    )
    return subprocess.run([*argv, cluster.container.python, "-c", look], capture_output=True).returncode == 0
