"""What an attempt notes beside its tasks: the whole of its work, so that the run folder alone can repeat it, and the
environment that it was submitted from."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from semiocity.config import Resources
from semiocity.launch.jobs import Work

PACKAGES = ("semiocity", "submitit", "pydantic", "numpy", "pyarrow", "pillow", "torch", "deepspeed", "transformers")


def of_work(work: Work) -> dict[str, Any]:
    """A `Work` as JSON, flat in attempt.json."""
    return {
        "kind": work.kind,
        "job": work.job,
        "run": str(work.run),
        "dataset": str(work.dataset),
        "column": work.column,
        "revision": work.revision,
        "columns": work.columns,
        "resources": work.resources.model_dump(mode="json"),
        "shards": work.shards,
        "together": work.together,
        "units": work.units,
        "binds": [str(path) for path in work.binds],
    }


def work_of(data: Mapping[str, Any], run: Path, dataset: Path) -> Work:
    """The work of an attempt, to be done in the folder `run` and over `dataset`."""
    return Work(
        kind=data["kind"],
        run=run,
        dataset=dataset,
        job=data["job"],
        resources=Resources.model_validate(data["resources"]),
        image=Path(data["image"]) if data["image"] else None,
        column=data["column"],
        revision=data["revision"],
        shards=data["shards"],
        together=data["together"],
        units=data["units"],
        columns=data["columns"],
        binds=tuple(Path(path) for path in data["binds"]),
    )


def environment(image: Path | None) -> dict[str, Any]:
    """Who submitted, where, when, with which versions and image. No variables of the environment: some are secret."""
    return {
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "user": os.environ.get("USER", str(os.geteuid())),
        "host": socket.getfqdn(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "image": _image(image) if image else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _image(image: Path) -> dict[str, Any]:
    found = image.stat()
    return {"path": str(image), "bytes": found.st_size, "modified": round(found.st_mtime, 1)}
