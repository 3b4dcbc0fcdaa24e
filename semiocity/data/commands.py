"""Command lines that make a dataset's columns again: with the recipe or job file in this folder that fits best, and
with what that lacks to be about this dataset."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiocity.data.layout import BASE
from semiocity.data.manifest import read_column_manifest, read_manifest
from semiocity.data.recipe import load_recipe
from semiocity.data.state import EDIT
from semiocity.errors import UserError
from semiocity.files import read_json


def command_for(dataset: Path, column: str, revision: str) -> str:
    """The command line that makes what is missing of a revision of a column."""
    if column == BASE:
        return _packing(dataset, revision)
    try:
        stage = read_column_manifest(dataset, column, revision)["stage"]
    except UserError:
        return f"the job that made {column}"
    name, target = stage["name"], Path(dataset).resolve()
    if name == "import":
        return f"semiocity import {dataset} --again {column}"
    if name == EDIT:
        return f"semiocity edit {dataset} --column {column} --again"
    found: list[tuple[tuple[bool, bool, bool], Path]] = []
    for path, facts in _files(Path("jobs")):
        if name in (facts.get("stage"), facts.get("reduce")) and facts.get("column", column) == column:
            here = Path(str(facts.get("dataset"))).resolve() == target
            same = all(stage["args"].get(key, value) == value for key, value in facts.get("args", {}).items())
            found.append(((here, same, "column" in facts), path))
    none = ((False, False, False), Path("jobs") / f"{name}.toml")
    (here, _, named), job = max(found, key=lambda item: item[0], default=none)
    sets = [] if here else [f"dataset={_near(dataset)}"]
    sets += [] if named or column == name else [f"column={column}"]
    return _line(name, job, sets)


def _packing(dataset: Path, revision: str) -> str:
    """Packing by a recipe that gives the settings of the plan; other settings would plan everything anew."""
    name = read_manifest(dataset)["name"]
    try:
        plan = read_json(Path(dataset) / "plans" / revision / "plan.json")
    except (FileNotFoundError, UserError):
        plan = {"recipe": read_manifest(dataset)["recipe"]}
    recipe, root = plan["recipe"], plan.get("root")
    files = [(facts.get("name", path.stem) == name, path, facts) for path, facts in _files(Path("shards"))]
    fits = [item for item in files if item[0] or item[2].get("source", {}).get("kind") == recipe["source"]["kind"]]
    best: tuple[tuple[bool, int], Path | str, list[str]] = ((False, 0), f"shards/{name}.toml", [])
    for called, path, facts in fits:
        sets = [] if called else [f"name={name}"]
        mine = facts.get("source", {}).get("root")
        if root is not None and (mine is None or Path(mine).resolve() != Path(root)):
            sets.append(f"source.root={root}")
        if plan.get("link_roots"):
            sets.append(f"source.link_roots={json.dumps(plan['link_roots'])}")
        with suppress(UserError):
            sets += _differences(load_recipe(path, sets).resolved(), recipe)
        if (rank := (called, -len(sets))) > best[0] or best[1] == f"shards/{name}.toml":
            best = (rank, path, sets)
    return _line("pack", best[1], best[2])


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings that bring `ours` to `theirs`, as `--set` takes them. What is null, or holds tables, it cannot take."""
    for key, wanted in theirs.items():
        have = ours.get(key)
        if isinstance(wanted, dict) and isinstance(have, dict):
            yield from _differences(have, wanted, f"{prefix}{key}.")
        elif wanted != have and wanted is not None and "{" not in (text := json.dumps(wanted)):
            yield f"{prefix}{key}={text}"


def _files(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("*.toml")):
        with suppress(tomllib.TOMLDecodeError, OSError), path.open("rb") as file:
            yield path, tomllib.load(file)


def _near(path: Path) -> str:
    near = os.path.relpath(path)
    return str(Path(path).resolve()) if near.startswith("..") else near


def _line(verb: str, path: Path | str, sets: list[str]) -> str:
    return " ".join(["semiocity", verb, str(path), *(f"--set {shlex.quote(item)}" for item in sets)])
