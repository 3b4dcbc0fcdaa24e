"""What is refused before a training is queued: settings that need modules or programs which are not where it will run.

The image is asked, or this Python where there is none. Enroot's images can be looked into on a compute node only, and
which compiler a node has besides, nobody knows here; there the job itself refuses (semiocity.train.compiling,
semiocity.models.attention).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import container
from semiocity.models.attention_names import MODULES, ON_CPU

COMPILERS = ("g++", "c++", "clang++", "gcc", "cc")
"""One of them is what torch.compile calls."""
_LOOK = """import importlib.util, json, shutil, sys
modules, programs = json.loads(sys.argv[1])
print(json.dumps([m for m in modules if importlib.util.find_spec(m)] + [p for p in programs if shutil.which(p)]))"""


def check(job: Mapping[str, Any], image: Path | None, cluster: Cluster) -> None:
    """UserError unless a training finds what compile, model.attention and optimizer.kind need. `job`: a TrainJob as
    JSON."""
    gpus = bool(job["resources"]["gpus_per_node"])
    backend = job["model"].get("attention", "native")
    if backend not in ON_CPU and not gpus:
        raise UserError(f'model.attention = "{backend}" needs a GPU; on CPUs take "native"')
    # Setting, modules that it needs all of, programs that it needs one of, and what to set instead.
    wanted: list[tuple[str, list[str], tuple[str, ...], str]] = []
    if job["compile"] == "blocks":
        wanted.append(('compile = "blocks"', ["triton"] if gpus else [], COMPILERS, 'compile = "none"'))
    if module := MODULES[backend]:
        wanted.append((f'model.attention = "{backend}"', [module], (), 'model.attention = "native"'))
    if job["optimizer"]["kind"] == "adamw_8bit":
        wanted.append(('optimizer.kind = "adamw_8bit"', ["bitsandbytes"], (), "another optimizer.kind"))
    if not wanted:
        return
    there = found(
        [name for _, modules, _, _ in wanted for name in modules],
        [name for _, _, programs, _ in wanted for name in programs],
        image,
        cluster,
    )
    if there is None:
        return
    where = f"in {image}" if image else "here, where the job would run"
    for setting, modules, programs, instead in wanted:
        lacking = [f"the Python module {name}" for name in modules if name not in there]
        if programs and not there & set(programs) and (image or cluster.executor == "local"):
            lacking.append("a C++ compiler (g++)")
        if lacking:
            raise UserError(
                f"{setting} needs {' and '.join(lacking)}, not to be found {where}; add it "
                f"(containers/README.md says how), or set {instead}"
            )


def found(modules: Iterable[str], programs: Iterable[str], image: Path | None, cluster: Cluster) -> set[str] | None:
    """Which of them are in the image, or in this Python and on its path. None where nobody can tell from here."""
    argv = [sys.executable]
    if image is not None:
        if cluster.container.runtime != "apptainer":
            return None
        argv = container.exec_argv(
            image, binds=[], env={}, nv=False, pythonpath=None, pwd=Path("/"), apptainer=cluster.container.apptainer
        )
        argv = [*argv, cluster.container.python]
    question = json.dumps([list(modules), list(programs)])
    done = subprocess.run([*argv, "-c", _LOOK, question], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{image or sys.executable}: its Python does not start: {said}")
    return set(json.loads(done.stdout))
