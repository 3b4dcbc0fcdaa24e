"""Whether an image is what this checkout's definition and lock would build, and in which packages it differs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from semiocity.errors import UserError
from semiocity.launch import container

# The image keeps the lock that it was built from.
_LOOK = f"import sys; print('%d.%d' % sys.version_info[:2]); print(open('/opt/{container.LOCK}').read())"


@dataclass(frozen=True)
class Comparison:
    """An image against a recipe."""

    image: str
    variant: str
    matches: bool
    """Whether the label names exactly this definition, these arguments and this lock."""
    python: str
    """The image's Python, such as 3.11."""
    packages: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Package → (the image's version, the lock's); empty for a version that is not there."""

    @property
    def usable(self) -> bool:
        """Whether tasks that this side submits find the Python and the packages they expect."""
        return self.new_enough and not self.packages

    @property
    def new_enough(self) -> bool:
        """Whether the image's Python can run this package."""
        return tuple(map(int, self.python.split("."))) >= container.OLDEST_PYTHON

    def lines(self) -> list[str]:
        """For a person."""
        same = "is what definition, arguments and lock give" if self.matches else "was built from another definition"
        if not self.matches and self.usable:
            same += " or other arguments; its packages are those of the lock"
        found = [f"{self.image} ({self.variant}): {same}"]
        if not self.new_enough:
            oldest = ".".join(map(str, container.OLDEST_PYTHON))
            found.append(f"  Python {self.python} in the image, {oldest} or newer is needed")
        elif self.python != _here():
            found.append(f'  Python {self.python} in the image, {_here()} on this side: only executor = "local" minds')
        for name, (there, locked) in sorted(self.packages.items()):
            found.append(f"  {name}: {there or 'missing'} in the image, {locked or 'not'} in the lock")
        if not self.usable:
            found.append("  build the image anew with `make image`, or submit from the checkout that it was built from")
        return found

    def json(self) -> str:
        return json.dumps({**asdict(self), "usable": self.usable}, indent=1, sort_keys=True)


def compare(image: Path, recipe: Path, overrides: Mapping[str, str], apptainer: str = "apptainer") -> Comparison:
    """Look into `image`, and at the lock of its variant in `recipe`. Raises UserError when it is no image of ours."""
    labels = container.labels(image, apptainer)
    if container.LABEL not in labels:
        raise UserError(f"{image}: has no label {container.LABEL}: not built by `semiocity image`")
    variant = labels.get("semiocity.variant", "gpu")
    arguments = container.read_arguments(recipe / container.ARGUMENTS, {**overrides, "VARIANT": variant})
    lock = container.lock_of(recipe, arguments)
    digest = container.image_digest(recipe / container.DEFINITION, arguments, lock)
    python, its_lock = _look(image, apptainer)
    return Comparison(
        image=str(image),
        variant=variant,
        matches=labels[container.LABEL] == digest,
        python=python,
        packages=differing(pins(its_lock), pins(lock.read_text(encoding="utf-8"))),
    )


def pins(lock: str) -> dict[str, str]:
    """Package → version of a lock's text; several versions, for several Pythons, with commas between them."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9][\w.-]*)==([^\s;\\]+)", lock, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def differing(there: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Package → (version there, version wanted) of all that differ; empty for none."""
    names = there.keys() | wanted.keys()
    pairs = {name: (there.get(name, ""), wanted.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _look(image: Path, apptainer: str) -> tuple[str, str]:
    """The image's Python, and the text of its lock."""
    clean = ["--no-mount", "home,cwd", "--env", "PYTHONPATH="]
    argv = [apptainer, "exec", *clean, str(image), "python3", "-I", "-c", _LOOK]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(f"{image}: its Python does not start: {said[-1] if said else f'status {done.returncode}'}")
    python, _, lock = done.stdout.partition("\n")
    return python, lock


def _here() -> str:
    return "{}.{}".format(*sys.version_info[:2])
