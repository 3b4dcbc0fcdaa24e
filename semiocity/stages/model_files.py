"""Models by name: `jobs/models.toml` says which there are, `jobs/models.lock.json` pins them, and a marker in a model's
folder says what must be there. Standard library and pydantic only: a login node refuses what is not complete.

    models/NAME -> NAME@COMMIT      a link, moved when the pin moves; running jobs keep the folder that they began with
    models/NAME@COMMIT/             the files, and .semiocity-model.json, written last
"""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from semiocity.config import Strict, check
from semiocity.errors import UserError
from semiocity.files import read_json

TABLE = Path("jobs/models.toml")
MARKER = ".semiocity-model.json"
HEADER_MAX = 100_000_000
"""Bytes. Longer headers are refused by safetensors itself."""


class Model(Strict):
    """One model of the table."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository on the hub, ORG/NAME."""
    revision: str = "main"
    """Branch, tag or commit. What it stood for at the first fetch is pinned in the lock."""
    files: tuple[str, ...] = ("*.safetensors", "*.json", "*.txt", "*.model")
    """Patterns of what is fetched; * matches slashes too. Pickled weights (*.bin, *.pt) can run code when loaded."""
    ignore: tuple[str, ...] = ()
    """Patterns of what is not, such as a second copy of the weights in another precision."""


def read_table(path: Path = TABLE) -> dict[str, Model]:
    """Name → model; empty without a table. Raises UserError naming file and key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    for name in data:
        if not name or name[0] in ".-" or set(name) & set("/@ \0"):
            raise UserError(f"{path}: {name!r}: a model's name is a folder's, without slash, space and @")
    return {name: check(value, Model, f"{path}: {name}") for name, value in data.items()}


def read_lock(table: Path = TABLE) -> dict[str, Any]:
    """Name → {repo, asked, commit, files: path → {bytes, sha256}} of what was pinned."""
    try:
        lock: dict[str, Any] = read_json(lock_of(table))
    except FileNotFoundError:
        return {}
    return lock


def lock_of(table: Path) -> Path:
    return table.with_suffix(".lock.json")


def state(folder: Path) -> tuple[Literal["complete", "incomplete", "missing"], str]:
    """Whether a fetched model is all there, by the sizes of its files, and what is wrong. Reads no weights."""
    if not folder.is_dir():
        return "missing", f"{folder}: no such folder"
    try:
        listed = read_json(folder / MARKER)["files"]
    except FileNotFoundError:
        return "incomplete", f"{folder}: no {MARKER}, which `semiocity fetch` writes last"
    fault = first_fault(folder, listed)
    return ("incomplete", fault) if fault else ("complete", "")


def first_fault(folder: Path, listed: dict[str, Any]) -> str:
    """The first of the listed files that is missing or has another size; empty when there is none."""
    for name, facts in sorted(listed.items()):
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{folder / name} is missing"
        if size != facts["bytes"]:
            return f"{folder / name} has {size} bytes instead of {facts['bytes']}"
    return ""


def check_marked(folder: Path, where: str, name: str) -> None:
    """Refuse a fetched model of which something is gone. Folders that we did not fetch have no marker and pass."""
    if (folder / MARKER).is_file() and (fault := state(folder)[1]):
        raise UserError(f"{where}: {fault}; fetch it again on the login node: `{command(name)}`")


def check_safetensors(path: Path, where: str, remedy: str) -> None:
    """Refuse a truncated safetensors file: its header says how long it must be. Reads the header alone."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if size < 8 + length or length > HEADER_MAX:
                raise ValueError
            header = json.loads(file.read(length))
            ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise UserError(f"{where}: {path}: no whole safetensors file; {remedy}") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise UserError(f"{where}: {path}: has {size} bytes, its header asks for {expected}; {remedy}")


def name_of(folder: Path) -> str:
    """The name that a folder of weights goes by: NAME of models/NAME and of models/NAME@COMMIT."""
    return folder.name.partition("@")[0]


class Origin(NamedTuple):
    """Where a folder of weights is from."""

    name: str
    """What people call it."""
    repo: str | None = None
    """ORG/NAME on the hub, where the folder says so."""
    commit: str | None = None


def origin(folder: Path) -> Origin:
    """Of what `semiocity fetch` or the hub's own cache made; of any other folder its name alone."""
    folder = folder.resolve()
    with suppress(OSError, ValueError, KeyError):
        found = read_json(folder / MARKER)
        return Origin(name_of(folder), found["repo"], found["commit"])
    for place in (folder, *folder.parents[:2]):  # models--ORG--NAME, or its snapshots/COMMIT
        kind, *repo = place.name.split("--")
        if kind == "models" and len(repo) == 2:
            commit = folder.name if folder.parent.name == "snapshots" else None
            with suppress(OSError):
                commit = commit or (folder / "refs" / "main").read_text(encoding="ascii").strip()
            return Origin(repo[1], "/".join(repo), commit)
    return Origin(name_of(folder))


def command(name: str) -> str:
    """What fetches a model."""
    return f"semiocity fetch {name}"


def require(folder: Path, where: str) -> None:
    """Refuse a model's folder that is not there. Raises UserError beginning with `where`."""
    if not folder.is_dir():
        raise UserError(f"{where}: {folder}: no such folder. Compute nodes have no network: {remedy(folder)}")


def remedy(folder: Path) -> str:
    """How a missing or broken folder of weights is mended, as exactly as we know. `folder` may be a part of a pipeline,
    such as models/NAME/vae, or a snapshot in the hub's cache."""
    table = read_table()
    for place in (folder, folder.parent):
        if (name := name_of(place)) in table:
            return _of_the_table(place, name)
    cached = next((p for p in (folder, *folder.parents[:3]) if p.name.startswith("models--")), None)
    if cached is not None:
        repo = cached.name.removeprefix("models--").replace("--", "/")
        return f"fetch it on the login node: `hf download {repo}`, into the same cache"
    return (
        f"fetch it on the login node: name it in {TABLE} and run `{command(name_of(folder))}`, "
        f"or `hf download ORG/NAME --local-dir {folder}`"
    )


def _of_the_table(place: Path, name: str) -> str:
    match state(place)[0]:
        case "complete":  # fetching again would change nothing
            return (
                f"it is there as {TABLE} asks for it: `semiocity fetch --check {name}` finds damage; "
                f"else change `files` or `ignore` of {name} there, or take another model"
            )
        case "incomplete" if "@" not in place.name and not place.is_symlink() and not (place / MARKER).is_file():
            return f"move {place} away, which `semiocity fetch` did not make, then: `{command(name)}` on the login node"
    return f"fetch it on the login node: `{command(name)}`"
