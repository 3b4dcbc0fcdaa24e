"""What a step of a pipeline reads and makes, found without its inputs; and its work, once they are there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.config import load_toml
from semiocity.data import manifest
from semiocity.data.manifest import BASE
from semiocity.errors import UserError
from semiocity.launch import jobs, pages, prompt_jobs
from semiocity.launch.jobs import Work

FILES = ("pack", "stage", "reduce", "view", "train", "generate", "evaluate", "report", "export")
"""Keys of a step that name its file, and say what kind of step it is."""

NAMED = re.compile(r"\b([a-z][a-z0-9_]*)\.[a-z]")
"""A column in a filter expression."""
RESULTS = {"model": "export/config.json", "samples": "samples/manifest.json", "scores": "scores.json"}


@dataclass(frozen=True)
class Step:
    """A step as the pipeline's file gives it."""

    name: str
    kind: str
    """One of FILES."""
    file: Path
    sets: tuple[str, ...] = ()
    job: Path = Path("jobs/pack.toml")
    """With kind pack and export: what a task asks of the cluster."""
    after: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For attempt.json; `Step(**…)` of it with paths is the step again."""
        return {
            "name": self.name,
            "kind": self.kind,
            "file": str(self.file),
            "sets": list(self.sets),
            "job": str(self.job),
            "after": list(self.after),
        }


def step_of(data: Mapping[str, Any]) -> Step:
    """The step that `as_json` gave."""
    return Step(
        data["name"], data["kind"], Path(data["file"]), tuple(data["sets"]), Path(data["job"]), tuple(data["after"])
    )


def moved(data: Mapping[str, Any], folder: Path) -> Step:
    """The step that `frozen` made in an attempt's folder `files`, which may have been moved since."""
    step = step_of(data)
    copy = folder / step.name / step.file.name
    if not copy.is_file():  # a view that was built is its own rule
        return step
    sets = step.sets
    if step.kind == "generate" and (prompts := prompt_jobs.prompts_of(copy, sets)):
        sets = (*sets, f"prompts={json.dumps(str(copy.with_name(prompts.name)))}")
    return replace(step, file=copy, job=copy.with_name(step.job.name), sets=sets)


class Thing(NamedTuple):
    """Something that one step makes and another reads."""

    kind: str
    """column, view, model, samples, scores or copy."""
    folder: Path
    """The dataset's or run's folder."""
    name: str = ""
    """Of a column or view."""

    def __str__(self) -> str:
        if self.kind in ("column", "view"):
            return f"{self.kind} {self.name} of {self.folder.name}"
        return f"the {self.kind} of {self.folder.name}"

    def exists(self) -> bool:
        """Whether some form of it is there; whether it is up to date shows when the step is planned."""
        match self.kind:
            case "column":
                return manifest.current(self.folder, self.name) is not None
            case "view":
                return (self.folder / "views" / self.name / "view.json").exists()
            case _:
                return (self.folder / RESULTS[self.kind]).exists()


@dataclass(frozen=True)
class Facts:
    """What a step reads and makes."""

    draft: Work
    """Its work as far as the job file alone tells, without revision, shards and inputs: enough to ask whether it could
    run."""
    makes: tuple[Thing, ...]
    reads: Mapping[Thing, tuple[str, ...]] = field(default_factory=dict)
    """What it reads, and of a column which fields."""
    mentions: tuple[Thing, ...] = ()
    """What it reads if it exists: columns that a filter names, as far as its words tell."""
    all_columns: bool = False
    """Whether it reads every column that the dataset has."""
    fields: tuple[str, ...] = ()
    """Fields of the column that it makes; empty where only its rows will tell."""


def describe(step: Step) -> Facts:
    """Check a step's job file, as far as its inputs are not needed for that. Raises UserError."""
    match step.kind:
        case "pack":
            return _pack(step)
        case "stage":
            job, made = jobs.load_stage(step.file, step.sets)
            fields = [*made.fields(), *made.scalars()]
            # Scalars named after the dataset's classes are not known before it is.
            known = fields if made.name != "caption" else []
            return _column("stage", job, job.column or made.column, made.needs(), known)
        case "reduce":
            from semiocity.config import ReduceJob
            from semiocity.stages.reduce import make_reduce

            reducing = load_toml(step.file, ReduceJob, step.sets)
            reduce = make_reduce(reducing.reduce, reducing.args, where=f"{step.file}: args")
            column = reducing.column or reduce.column
            return _column("reduce", reducing, column, reduce.needs(), [*reduce.fields(), *reduce.scalars()])
        case "view":
            from semiocity.data.views import load_job

            view = load_job(step.file, step.sets)
            named = Thing("view", view.dataset.resolve(), view.name or step.file.stem)
            split = () if view.split in ("", "base.split") else (view.split,)
            words = {*NAMED.findall(view.filter or ""), *view.join}
            mentions = tuple(Thing("column", named.folder, column) for column in sorted(words))
            reads = _columns(named.folder, (*view.fields, *split))
            run = jobs.run_folder(view.run, "view", named.name, named.folder.name)
            return Facts(_draft("view", run, view, named.name), (named,), reads, mentions)
        case "train":
            from semiocity.train.options import TrainJob, needs

            train = load_toml(step.file, TrainJob, step.sets)
            dataset = train.dataset.resolve()
            rows = _rows(dataset, train.data.view, needs(train))
            run = jobs.run_folder(train.run, train.task, dataset.name)
            return Facts(_draft("train", run, train), (Thing("model", run),), rows)
        case "generate" if prompt_jobs.prompts_of(step.file, step.sets):
            from semiocity.evaluate.prompt_options import PromptJob

            painting = load_toml(step.file, PromptJob, step.sets)
            run = jobs.run_folder(painting.run)
            there = painting.model is not None and painting.model.exists()
            prompt_jobs.check(step.file, painting, run if there else None)
            draft = Work("generate", run, run, painting.model_dump(mode="json"), painting.resources, painting.image)
            return Facts(draft, (Thing("samples", run),), {} if painting.model else {Thing("model", run): ()})
        case "generate":
            from semiocity.evaluate.options import GenerateJob

            generate = load_toml(step.file, GenerateJob, step.sets)
            run, dataset = _run(generate.run, step), generate.dataset.resolve()
            model = {} if generate.model else {Thing("model", run): ()}
            rows = _rows(dataset, generate.view, ("base.label",))
            return Facts(_draft("generate", run, generate), (Thing("samples", run),), {**rows, **model})
        case "evaluate":
            from semiocity.evaluate.options import EvaluateJob

            evaluate = load_toml(step.file, EvaluateJob, step.sets)
            run, dataset = _run(evaluate.run, step), evaluate.dataset.resolve()
            samples = {} if evaluate.samples else {Thing("samples", run): ()}
            reads = {**_columns(dataset, ("base.image", "base.label")), **samples}
            return Facts(_draft("evaluate", run, evaluate), (Thing("scores", run),), reads)
        case "report":
            from semiocity.evaluate.options import EvaluateJob

            report = load_toml(step.file, EvaluateJob, step.sets)
            run = _run(report.run, step)
            draft = replace(_draft("report", run, report), resources=pages.one_core(report.resources))
            return Facts(draft, (Thing("page", run),), {Thing("scores", run): ()})
        case _:
            from semiocity.launch.exporting import ExportJob, run_of

            export = load_toml(step.file, pages.ExportFile, jobs.sets_of(step.sets, job=False))
            asked = jobs.load_asked(step.job, ExportJob, jobs.sets_of(step.sets, job=True))
            dataset, out = export.dataset.resolve(), str(export.out.absolute())
            rows = _rows(dataset, export.view, tuple(export.references()))
            copy = (Thing("copy", export.out.resolve()),)
            everything = not (export.fields or export.view)
            run = run_of(export.dataset, export.to, out)
            draft = Work("export", run, dataset, {}, asked.resources, asked.image, binds=(Path(out),))
            return Facts(draft, copy, rows, all_columns=everything)


def build(step: Step, dry_run: bool = False) -> Work:
    """The step's work. Its inputs must be there. Writes nothing with `dry_run`. Raises UserError."""
    match step.kind:
        case "pack":
            return jobs.pack(step.file, step.sets, step.job, dry_run=dry_run)
        case "stage":
            return jobs.stage(step.file, step.sets)
        case "reduce":
            return jobs.reduce(step.file, step.sets)
        case "view":
            return jobs.view(step.file, step.sets)
        case "train":
            return jobs.train(step.file, step.sets)
        case "generate":
            return prompt_jobs.generate(step.file, step.sets)
        case "evaluate":
            return jobs.evaluate(step.file, step.sets)
        case "report":
            return pages.report(step.file, step.sets)
        case _:
            return pages.export(step.file, step.sets, step.job, dry_run)


def frozen(step: Step, folder: Path) -> Step:
    """The same step with copies of its files in `folder`, so that editing a job file later changes nothing queued."""
    if step.file.is_dir():  # a view that was built is its own rule
        return step
    sets = step.sets
    if step.kind == "pack" and not any(item.startswith("folder=") for item in sets):
        # What lies beside a recipe is found from its folder, whichever copy of it this is.
        sets = (*sets, f"folder={json.dumps(str(step.file.parent.resolve()))}")
    place = folder / step.name
    place.mkdir(parents=True, exist_ok=True)
    (place / step.file.name).write_bytes(step.file.read_bytes())
    if step.kind == "generate" and (prompts := prompt_jobs.prompts_of(step.file, sets)):
        copy = place / f"prompts{prompts.suffix}"
        copy.write_bytes(prompts.read_bytes())
        sets = (*sets, f"prompts={json.dumps(str(copy))}")
    job = place / f"job-{step.job.name.removeprefix('job-')}"
    if step.job.exists():
        job.write_bytes(step.job.read_bytes())
    return replace(step, file=place / step.file.name, job=job, sets=sets)


def _pack(step: Step) -> Facts:
    from semiocity.data.recipe import load_recipe

    recipe = load_recipe(step.file, jobs.sets_of(step.sets, job=False))
    job = jobs.load_asked(step.job, jobs.PackJob, jobs.sets_of(step.sets, job=True))
    dataset = (Path("data") / recipe.name).resolve()
    run = jobs.run_folder(None, "pack", recipe.name)
    draft = Work("pack", run, dataset, {}, job.resources, job.image, column=BASE)
    return Facts(draft, (Thing("column", dataset, BASE),))


def _draft(kind: str, run: Path, job: Any, column: str = "") -> Work:
    settings = job.model_dump(mode="json")
    return Work(kind, run, job.dataset.resolve(), settings, job.resources, job.image, column=column)


def _column(kind: str, job: Any, column: str, needs: tuple[str, ...], fields: list[str]) -> Facts:
    dataset = job.dataset.resolve()
    made = Thing("column", dataset, column)
    draft = _draft(kind, jobs.run_folder(job.run, column, dataset.name), job, column)
    return Facts(draft, (made,), _columns(dataset, needs), fields=tuple(fields))


def _columns(dataset: Path, references: tuple[str, ...]) -> dict[Thing, tuple[str, ...]]:
    found: dict[Thing, tuple[str, ...]] = {Thing("column", dataset, BASE): ()}
    for reference in references:
        column, _, name = reference.partition(".")
        thing = Thing("column", dataset, column)
        found[thing] = (*found.get(thing, ()), name)
    return found


def _rows(dataset: Path, view: str | None, references: tuple[str, ...]) -> dict[Thing, tuple[str, ...]]:
    """What a job reads that takes rows of a dataset, or of a saved view."""
    if view is None:
        return _columns(dataset, references)
    return {Thing("view", dataset, view.partition("@")[0]): ()}


def _run(name: str | None, step: Step) -> Path:
    if name is None:
        raise UserError(f"{step.file}: run: missing; name the training run that is meant, here or as the pipeline's")
    return jobs.run_folder(name)
