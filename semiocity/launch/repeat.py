"""A run again, from its folder alone: the same resolved job, pinned revisions and code snapshot, here or in another
project's folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semiocity.config import Cluster, check, load_toml
from semiocity.errors import UserError
from semiocity.launch import facts, pipeline_run, submission
from semiocity.launch.jobs import CLUSTER_FILE, Work
from semiocity.launch.pipeline import choose, of_attempt
from semiocity.launch.runs import Attempt, attempts


def repeat(folder: Path, cluster_file: Path | None, *, wait: bool, dry_run: bool) -> bool:
    """Do again what the run folder (or its name) holds; returns True when all of it is known to be complete.

    Only what is missing is done, with the code, arguments and revisions of the run's newest attempts. A folder from
    elsewhere is repeated under its name in this project's `runs/`, over this project's dataset of the same name where
    there is one; a pipeline with the copies of its job files. A training's later steps (generate, evaluate) follow when
    what they need is complete.
    """
    source = folder if folder.is_dir() else Path("runs") / folder
    if not (source / "attempts").is_dir():
        raise UserError(f"{folder}: no run folder; `semiocity status` lists those of this project")
    target = (Path("runs") / source.resolve().name).resolve()
    newest = _newest(source.resolve())
    attempt, data = newest[-1]
    if data["kind"] == "pipeline":
        pipeline, asked = of_attempt(attempt)
        cluster, code = _cluster(cluster_file, data), _code(attempt, data, target, dry_run)
        return pipeline_run.run(pipeline, cluster, choose(pipeline, asked), wait=wait, dry_run=dry_run, code=code)
    for number, (attempt, data) in enumerate(newest):
        code = _code(attempt, data, target, dry_run)
        work = _work(attempt, data, target, dry_run)
        cluster = _cluster(cluster_file, data)
        if not submission.submit(work, cluster, wait=wait, dry_run=dry_run, replace=True, code=code) and not dry_run:
            rest = [str(later["kind"]) for _, later in newest[number + 1 :]]
            if rest:
                print(f"then: {', '.join(rest)}; the same command goes on with them when this is complete")
            return False
    return not dry_run


def _newest(run: Path) -> list[tuple[Attempt, dict[str, Any]]]:
    """The newest attempt at each kind of work, in the order in which the kinds were first done."""
    found: dict[tuple[str, str], tuple[Attempt, dict[str, Any]]] = {}
    for attempt in attempts(run):
        if attempt.file.exists():
            data = attempt.read()
            if "resources" not in data and data["kind"] != "pipeline":
                raise UserError(
                    f"{attempt.file}: submitted by a version that did not note everything; run its job file again"
                )
            found[data["kind"], data["column"]] = (attempt, data)
    if not found:
        raise UserError(f"{run}: nothing was ever submitted in this run folder")
    return list(found.values())


def _code(attempt: Attempt, data: Mapping[str, Any], target: Path, dry_run: bool) -> Path:
    """The attempt's code snapshot, brought into the target's run folder."""
    name = Path(data["code"]).name
    source, copy = attempt.run / "code" / name, target / "code" / name
    if not (source / "semiocity").is_dir():
        raise UserError(
            f"{source}: the code snapshot of attempt {attempt.number} is missing; the run cannot be repeated"
        )
    if source != copy and not copy.exists() and not dry_run:
        temporary = copy.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.rename(copy)
    return copy


def _work(attempt: Attempt, data: Mapping[str, Any], target: Path, dry_run: bool) -> Work:
    about_none = data["dataset"] == data["run"]
    data = facts.moved(attempt, data)
    if about_none:
        return facts.work_of(data, target, target)
    here, there = (Path("data") / Path(data["dataset"]).name).resolve(), Path(data["dataset"])
    dataset = here if here.exists() or not there.exists() else there
    if data["kind"] == "pack":
        _plan_again(data, here, write=not dry_run)
        dataset = here
    elif not dataset.exists():
        raise UserError(f"{here}: no such dataset, and {there} is gone; pack it first, or copy it here")
    return facts.work_of(data, target, dataset)


def _plan_again(data: Mapping[str, Any], dataset: Path, write: bool) -> None:
    from semiocity.data.plan import make_plan
    from semiocity.data.recipe import Recipe

    if (dataset / "plans" / data["revision"] / "plan.json").exists():
        return
    plan = make_plan(check(data["job"], Recipe, where="the run's recipe"), dataset, anew=True, write=write)
    if plan.revision != data["revision"]:
        raise UserError(
            f"{dataset}: the source gives revision {plan.revision} now, the run packed {data['revision']}: rows were "
            "added, changed or removed since; pack the recipe anew instead"
        )


def _cluster(file: Path | None, data: Mapping[str, Any]) -> Cluster:
    """The site file that is named, or this project's, or the one that the run was submitted with."""
    if file is None and not CLUSTER_FILE.exists():
        return check(data["cluster"], Cluster, where="the run's site file")
    return load_toml(file or CLUSTER_FILE, Cluster)
