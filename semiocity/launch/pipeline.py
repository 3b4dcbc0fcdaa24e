"""Pipelines (`jobs/pipelines/NAME.toml`): jobs as a graph, checked as a whole before anything is queued.

A step names a job file; which steps it waits for follows from what it reads and what they make. Login-node code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from semiocity.config import Resources, Strict, check, load_toml
from semiocity.errors import UserError
from semiocity.launch.pipeline_steps import FILES, Facts, Step, Thing, describe, moved
from semiocity.launch.prompt_jobs import prompts_of
from semiocity.launch.runs import Attempt

StepName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]


class StepFile(Strict):
    """One step: exactly one of `pack` … `export`, with what it is made from."""

    pack: Path | None = None
    """A recipe, shards/NAME.toml."""
    stage: Path | None = None
    reduce: Path | None = None
    view: Path | None = None
    train: Path | None = None
    generate: Path | None = None
    evaluate: Path | None = None
    report: Path | None = None
    """The job file of an evaluation: a page about its run, with its dataset."""
    export: Path | None = None
    """A copy of a dataset in the format of another tool."""
    job: Path | None = None
    """With `pack` and `export`: what a task asks of the cluster; jobs/pack.toml and jobs/export.toml by default."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the job file to override, dotted or nested: { "args.batch" = 8 }."""
    after: tuple[str, ...] = ()
    """Steps to wait for beyond those whose results it reads."""

    @model_validator(mode="after")
    def _one_file(self) -> StepFile:
        given = [name for name in FILES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(FILES)}, not {', '.join(given) or 'none of them'}")
        if self.job is not None and not (self.pack or self.export):
            raise ValueError(f"job goes with pack and export; name the job file at {given[0]}")
        return self


class PipelineFile(Strict):
    """`jobs/pipelines/NAME.toml`."""

    steps: dict[StepName, StepFile] = Field(min_length=1)
    dataset: Path | None = None
    """The dataset of every step but packing, in place of what the job files say."""
    run: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run of every training, generation, evaluation and report."""
    gate: Resources = Resources()
    """What the small job asks for that plans a step on the cluster, once the steps before it have ended."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose every job file was checked, in an order in which it can run."""

    name: str
    file: Path
    steps: tuple[Step, ...]
    facts: Mapping[str, Facts]
    """Step → what it reads and makes."""
    parents: Mapping[str, tuple[str, ...]]
    """Step → the steps that it waits for."""
    gate: Resources
    sets: tuple[str, ...] = ()
    """What the command line overrode, STEP.KEY=VALUE."""

    @property
    def run(self) -> Path:
        return (Path("runs") / f"pipeline-{self.name}").resolve()

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


def load(file: Path, sets: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline and all of its job files. `sets` are STEP.KEY=VALUE.

    Raises UserError with every fault that is found: job files, unknown steps, cycles, results that two steps would
    make, and results that no step makes and that are not there.
    """
    found = load_toml(file, PipelineFile)
    steps = {name: _step(name, entry, found) for name, entry in found.steps.items()}
    for item in sets:
        name, dot, rest = item.partition(".")
        if not dot or name not in steps:
            raise UserError(f"--set {item}: expected STEP.KEY=VALUE; the steps are {', '.join(steps)}")
        steps[name] = replace(steps[name], sets=(*steps[name].sets, rest))
    for name, step in steps.items():
        if step.kind == "generate" and prompts_of(step.file, step.sets):  # which are about no dataset
            steps[name] = replace(step, sets=tuple(item for item in step.sets if item != _dataset(found)))
    facts = _describe(file, steps)
    parents = _parents(file, steps, facts)
    try:
        order = list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise UserError(f"{file}: steps wait for one another: {' → '.join(reversed(error.args[1]))}") from None
    return Pipeline(file.stem, file, tuple(steps[name] for name in order), facts, parents, found.gate, tuple(sets))


def of_attempt(attempt: Attempt) -> tuple[Pipeline, list[str]]:
    """The pipeline that an attempt queued, by the copies of its files in the attempt's folder alone, and the steps that
    were asked for. Raises UserError as `load` does."""
    job = attempt.read()["job"]
    if "gate" not in job:
        raise UserError(f"{attempt.file}: queued by a version that did not note everything; run its file again")
    file = attempt.files / Path(job["file"]).name
    steps = {item["name"]: moved(item, attempt.files) for item in job["steps"]}
    parents = {name: tuple(job["parents"][name]) for name in steps}
    gate = check(job["gate"], Resources, where=f"{attempt.file}: gate")
    facts = _describe(file, steps)
    pipeline = Pipeline(file.stem, file, tuple(steps.values()), facts, parents, gate, tuple(job["sets"]))
    return pipeline, job["asked"]


def choose(pipeline: Pipeline, phases: Sequence[str] = (), start_from: str | None = None) -> list[str]:
    """Names of the chosen steps, in order: `phases`, or `start_from` and all that waits for it, or all."""
    names = [step.name for step in pipeline.steps]
    for name in (*phases, *([start_from] if start_from else ())):
        if name not in names:
            raise UserError(f"{pipeline.file}: no step {name}; {_hint(name, names)}")
    if start_from is None:
        return [name for name in names if not phases or name in phases]
    later = {start_from}
    for name in names:
        if later & set(pipeline.parents[name]):
            later.add(name)
    return [name for name in names if name in later and (not phases or name in phases)]


def _describe(file: Path, steps: Mapping[str, Step]) -> dict[str, Facts]:
    """What each step reads and makes. UserError with every fault in every job file."""
    facts: dict[str, Facts] = {}
    faults: list[str] = []
    for name, step in steps.items():
        try:
            facts[name] = describe(step)
        except UserError as error:
            faults += [f"{file}: steps.{name}: {line}" for line in str(error).splitlines()]
    if faults:
        raise UserError("\n".join(faults))
    return facts


def _step(name: str, entry: StepFile, found: PipelineFile) -> Step:
    kind = next(kind for kind in FILES if getattr(entry, kind) is not None)
    sets = []
    if found.dataset is not None and kind != "pack":
        sets.append(_dataset(found))
    if found.run is not None and kind in ("train", "generate", "evaluate", "report"):
        sets.append(f"run={json.dumps(found.run)}")
    return Step(
        name=name,
        kind=kind,
        file=getattr(entry, kind),
        sets=(*sets, *_dotted(entry.set)),
        job=entry.job or Path("jobs/export.toml" if kind == "export" else "jobs/pack.toml"),
        after=entry.after,
    )


def _dataset(found: PipelineFile) -> str:
    return f"dataset={json.dumps(str(found.dataset))}"


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, default=str)}"


def _parents(file: Path, steps: Mapping[str, Step], facts: Mapping[str, Facts]) -> dict[str, tuple[str, ...]]:
    makers: dict[Thing, str] = {}
    faults = []
    for name, fact in facts.items():
        for thing in fact.makes:
            if thing in makers:
                faults.append(f"{file}: steps.{makers[thing]} and steps.{name} would both make {thing}")
            makers.setdefault(thing, name)
    parents = {}
    for name, fact in facts.items():
        waits = list(steps[name].after)
        for other in waits:
            if other not in steps:
                faults.append(f"{file}: steps.{name}.after: no step {other}; {_hint(other, steps)}")
        for thing, fields in fact.reads.items():
            maker = makers.get(thing)
            if maker is None and not thing.exists():
                faults.append(f"{file}: steps.{name}: needs {thing}, which no step makes and which is not there")
            if maker is not None and maker not in waits:
                waits.append(maker)
            known = facts[maker].fields if maker is not None else ()
            for field in fields:
                if known and field not in known:
                    faults.append(
                        f"{file}: steps.{name}: needs {thing.name}.{field}, but {maker} makes {', '.join(known)}"
                    )
        named = [makers[thing] for thing in fact.mentions if thing in makers]
        if fact.all_columns:
            named += [m for thing, m in makers.items() if thing.kind == "column" and thing.folder == fact.draft.dataset]
        parents[name] = tuple(dict.fromkeys([*waits, *named]))
    if faults:
        raise UserError("\n".join(faults))
    return parents


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
