"""What an attempt notes beside its tasks: the whole of its work, so that the run folder alone can repeat it, and the
environment that it was submitted from."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from semiocity.config import Resources
from semiocity.errors import UserError
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt

PACKAGES = ("semiocity", "submitit", "pydantic", "numpy", "pyarrow", "pillow", "torch", "deepspeed", "transformers")


def of_work(work: Work) -> dict[str, Any]:
    """A `Work` as JSON, flat in attempt.json."""
    return {field.name: _plain(getattr(work, field.name)) for field in fields(work)}


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case Resources():
            return value.model_dump(mode="json")
        case tuple():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case _:
            return value


def work_of(data: Mapping[str, Any], run: Path, dataset: Path) -> Work:
    """The work of an attempt, to be done in the folder `run` and over `dataset`."""
    known = {field.name: data[field.name] for field in fields(Work) if field.name in data}
    return Work(
        **known
        | {
            "run": run,
            "dataset": dataset,
            "resources": Resources.model_validate(data["resources"]),
            "image": Path(data["image"]) if data["image"] else None,
            "binds": tuple(Path(path) for path in data["binds"]),
            "files": {key: Path(path) for key, path in data.get("files", {}).items()},
        }
    )


def moved(attempt: Attempt, data: Mapping[str, Any]) -> dict[str, Any]:
    """What an attempt noted, with the places of its own copies, wherever its run folder is now. Raises UserError when a
    copy is gone."""
    files = {key: attempt.files / Path(file).name for key, file in data.get("files", {}).items()}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file}: the attempt's copy of what it was submitted with is gone; run its job file again")
    found = {**data, "files": files, "job": data["job"] | {key: str(file) for key, file in files.items()}}
    if data["dataset"] == data["run"]:
        found["dataset"] = str(attempt.run)
    return found


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
